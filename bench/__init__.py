"""The demo: a real social graph loaded through the HTTP API, then a minute of load and a table. Knows no service."""
