"""The edge of the mesh: HTTP and JSON outside, gRPC inside. Knows the contracts and no service."""

import runtime  # noqa: F401 - before gRPC, which it sets up
