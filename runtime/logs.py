"""Logs: one JSON object a line on standard output, each with the process and the request it belongs to."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from runtime import context


def configure(process: str, level: str) -> None:
    """Sends all logging of this process to standard output as JSON lines. `level` is a name such as "info"."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        JsonFormatter(
            "%(level)s %(name)s %(message)s",
            timestamp="time",
            rename_fields={"name": "logger"},
            static_fields={"process": process},
        )
    )
    handler.addFilter(complete)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # At debug level it says for each call which loop it found.
    logging.getLogger("grpc").setLevel(logging.INFO)


def complete(record: logging.LogRecord) -> bool:
    """Adds `level` to a record, and to one that is logged while a request is served its `request_id` and `caller`."""
    record.level = record.levelname.lower()
    if request_id := context.request_id.get():
        record.request_id = request_id
    if caller := context.caller.get():
        record.caller = caller
    return True
