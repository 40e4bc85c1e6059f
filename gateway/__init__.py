"""The edge of the mesh: HTTP and JSON outside, gRPC inside. Knows the contracts and no service."""
