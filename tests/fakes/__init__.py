"""The services as one would explain them: in memory, small, obviously right; and what it takes to serve them in a test.

A fake passes the same contract suite as the service it stands for (tests/contract), behind the same gRPC server.
"""
