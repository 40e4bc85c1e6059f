"""How log lines look on the launcher's screen, and that a slow screen delays nobody."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime

import pytest

from launch.screen import MAX_LINE, Screen, render


def test_a_json_line_is_readable() -> None:
    line = json.dumps(
        {
            "time": "2026-01-02T03:04:05.678901+00:00",
            "level": "WARNING",
            "process": "graph",
            "message": "slow query",
            "took_ms": 12,
            "sql": "SELECT 1",
            "tags": ["a"],
            "empty": "",
            "none": None,
        }
    )
    clock = datetime.fromisoformat("2026-01-02T03:04:05.678+00:00").astimezone().strftime("%H:%M:%S.678")
    expected = f'{clock} graph        warning slow query took_ms=12 sql="SELECT 1" tags=["a"] empty="" none=null'
    assert render("graph", line) == expected


def test_a_trace_comes_last_and_indented() -> None:
    text = render("post", json.dumps({"message": "boom", "exc_info": "Traceback:\n  File x\nValueError", "code": 3}))
    assert text.split("\n")[0].endswith("boom code=3")
    assert text.split("\n")[1:] == ["    exc_info:", "    Traceback:", "      File x", "    ValueError"]


@pytest.mark.parametrize("line", ["plain text", "{broken", "[1]", '"text"', "{}x", "", "{" * 100_000, '{"a":' * 50_000])
def test_other_lines_pass_as_they_are(line: str) -> None:
    assert line[:1000] in render("postgres", line)


@pytest.mark.parametrize("time", [None, "yesterday", 1e300, -1e300, [], {}, True, 0])
def test_any_time_is_survived(time: object) -> None:
    assert render("x", json.dumps({"time": time, "message": "m", "level": 7})).endswith("m")


def test_a_strangers_text_cannot_command_the_terminal() -> None:
    assert "\x1b" not in render("post", json.dumps({"message": "\x1b[2J", "a": "\x9b1m", "b\r": "\r"}))
    assert "\x1b" not in render("post", "\x1b]0;title\x07")


def test_a_line_is_bounded() -> None:
    assert len(render("x", "y" * 100_000)) < MAX_LINE + 50


def test_colour_is_only_added() -> None:
    line = json.dumps({"time": 0, "level": "error", "message": "m"})
    assert "\x1b[0;31m" in render("x", line, colour=True)


def read_all(descriptor: int) -> list[str]:
    with os.fdopen(descriptor) as file:
        return file.read().splitlines()


def test_raw_lines_are_all_json() -> None:
    reading, writing = os.pipe()
    screen = Screen(writing, raw=True)
    screen.line("graph", '{"message": "as it is",  "n":1}')
    screen.line("graph-2", '{"process": "graph", "message": "of a replica"}')
    screen.line("postgres", "LOG:  ready")
    screen.say("info", "own")
    screen.say("debug", "hidden")
    screen.plain("feedmesh is ready")
    screen.close()
    os.close(writing)
    lines = read_all(reading)
    assert lines[0] == '{"message": "as it is",  "n":1}'
    assert [json.loads(line)["message"] for line in lines] == [
        *("as it is", "of a replica", "LOG:  ready", "own", "feedmesh is ready")
    ]
    assert json.loads(lines[1])["process"] == "graph-2"


def test_a_screen_that_takes_nothing_delays_nobody() -> None:
    reading, writing = os.pipe()
    screen = Screen(writing)
    slowest, bound = 0.0, time.monotonic() + 30
    while screen._dropped < 1000:  # the pipe is full, then the queue
        began = time.monotonic()
        assert began < bound
        screen.line("graph", "x" * 100)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1
    screen.close(seconds=0.1)  # gives up
    with os.fdopen(reading) as file:
        assert any("lines dropped" in line for line in file)
    os.close(writing)


def test_a_screen_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    screen = Screen(writing)
    screen.line("graph", "to nobody")
    screen.close()
    os.close(writing)
    assert not screen._writer.is_alive()
