import runtime  # noqa: F401 - before gRPC, which it sets up
