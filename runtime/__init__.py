"""What every process of the mesh stands on. Knows no service."""

import os

# grpc.aio polls in a thread of its own; with those of gRPC's event engine besides each message is handed on twice more,
# at twice the switches between threads, a fifth more CPU (docs/decisions/0010-grpc-threads.md). Read at its import.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener,-pollset_alternative")
