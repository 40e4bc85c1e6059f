"""One screen of logs: every child's lines, readable, in the order they came. Not a log store: nothing is kept.

Writing happens in a thread of its own behind a bounded queue, so that a stopped terminal or a slow pipe delays no
child: what does not fit is dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import threading
from datetime import UTC, datetime
from typing import Any

MAX_LINE = 16 * 1024  # characters of a line that are shown
MAX_WAITING = 4096  # lines
MAX_BATCH = 256  # lines in one write
NAME_WIDTH = 12

# Shown in their own columns, known from the column, or (uvicorn's) the message once more.
_APART = {"time", "level", "message", "process", "color_message"}
_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "31;1"}
# A post's text may stand in a log line: no escape sequence of a stranger's reaches the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(name: str, text: str, *, colour: bool = False) -> str:
    """A child's line as a person reads it: time, process, level, message, the rest as key=value.

    A line that is no JSON object passes as it is, behind the name. Many-line values (traces) come last, indented.
    """
    record = _record(text)
    if record is None:
        when, level, message = _clock(None), "", text
        rest: dict[str, Any] = {}
    else:
        rest = {key: value for key, value in record.items() if key not in _APART}
        when, message = _clock(record.get("time")), str(record.get("message", ""))
        level = str(record.get("level", "")).lower()
    long = {key: value for key, value in rest.items() if isinstance(value, str) and "\n" in value}
    short = [f"{key}={_quoted(value)}" for key, value in rest.items() if key not in long]
    head = f"{when} {name:<{NAME_WIDTH}} "
    body = " ".join(part for part in (f"{level:<7}" if level else "", message, *short) if part)
    body = "\n    ".join("\n".join([body, *(f"{key}:\n{value}" for key, value in long.items())]).splitlines())
    line = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", head + body)
    if len(line) > MAX_LINE:
        line = f"{line[:MAX_LINE]}… ({len(line) - MAX_LINE} more)"
    if colour:
        ink = f"\x1b[0;{_COLOURS.get(level, '39')}m"
        line = f"\x1b[2m{line[: len(when)]}\x1b[0;36m{line[len(when) : len(head)]}{ink}{line[len(head) :]}\x1b[0m"
    return line


def _record(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _clock(time: object) -> str:
    try:
        if isinstance(time, int | float):
            moment = datetime.fromtimestamp(time, UTC)
        else:
            moment = datetime.fromisoformat(str(time))
    except (ValueError, OverflowError, OSError):
        moment = datetime.now(UTC)
    return moment.astimezone().strftime("%H:%M:%S.%f")[:-3]


def _quoted(value: object) -> str:
    plain = isinstance(value, str) and value and not re.search(r'[\s"=]', value)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


class Screen:
    """Writes lines to a file descriptor, readable or (`raw`) one JSON object each. Never blocks its caller."""

    def __init__(self, descriptor: int, *, raw: bool = False, level: str = "info") -> None:
        self._descriptor = descriptor
        self._raw = raw
        self._debug = level == "debug"
        self._colour = not raw and os.isatty(descriptor) and not os.environ.get("NO_COLOR")
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="screen", daemon=True)
        self._writer.start()

    def line(self, name: str, text: str) -> None:
        """Shows a line that the child `name` wrote."""
        if not self._raw:
            self._put(render(name, text, colour=self._colour))
        elif (record := _record(text)) is not None:
            # Replicas do not know that they have names of their own.
            own = record.get("process", name) == name
            self._put(text if own else json.dumps({**record, "process": name}, ensure_ascii=False))
        else:
            self._put(_json("info", name, text))

    def say(self, level: str, message: str, **rest: object) -> None:
        """Shows a line of the launcher's own."""
        if level != "debug" or self._debug:
            self.line("feedmesh", _json(level, "feedmesh", message, **rest))

    def plain(self, text: str) -> None:
        """Shows a text as it stands, without time and name."""
        self._put(_json("info", "feedmesh", text) if self._raw else text)

    def close(self, *, seconds: float = 2.0) -> None:
        """Writes what waits; gives up on a screen that takes nothing for `seconds`."""
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return
        self._writer.join(seconds)

    def _put(self, line: str) -> None:
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        ended = False
        while not ended:
            lines = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):  # many at once: this thread gets the interpreter only now and then
                while len(lines) < MAX_BATCH:
                    lines.append(self._waiting.get_nowait())
            ended = None in lines
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                notice = _json("warning", "feedmesh", f"the screen was too slow: {dropped} lines dropped")
                lines.append(notice if self._raw else render("feedmesh", notice, colour=self._colour))
            data = "".join(f"{line}\n" for line in lines if line is not None).encode(errors="replace")
            with contextlib.suppress(OSError):  # nobody looks any more: the mesh runs on
                while data:
                    data = data[os.write(self._descriptor, data) :]


def _json(level: str, name: str, message: str, **rest: object) -> str:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": level, "process": name, "message": message, **rest}, ensure_ascii=False)
