"""The services of the mesh. None imports another; they meet through contracts and events."""

import runtime  # noqa: F401 - before gRPC, which it sets up
