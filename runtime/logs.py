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
            "%(levelname)s %(name)s %(message)s",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"process": process},
        )
    )
    handler.addFilter(add_request_id)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def add_request_id(record: logging.LogRecord) -> bool:
    """Adds `request_id` to a record that is logged while a request is served."""
    if request_id := context.request_id.get():
        record.request_id = request_id
    return True
