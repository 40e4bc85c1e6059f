"""The floor's own parts: what it takes from a list, and its connection to Valkey."""

from __future__ import annotations

import asyncio
from random import Random

from bench import floor
from runtime import members


class Wire(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data


def test_the_newest_twenty_of_a_list() -> None:
    rows = [(post_id, 1, post_id) for post_id in Random(1).sample(range(1, 2**53), 200)]
    newest = floor.newest_of(members.pack(rows))
    assert [int.from_bytes(each, "big") for each in newest] == sorted((row[0] for row in rows), reverse=True)[:20]
    assert floor.newest_of(b"") == []
    assert len(floor.newest_of(members.pack(rows[:3]))) == 3


async def test_answers_come_in_any_pieces() -> None:
    answers = b"$3\r\na\r\n\r\n$0\r\n\r\n*2\r\n$1\r\nx\r\n$12\r\nhello\r\nworld\r\n"
    for size in range(1, len(answers) + 1):
        valkey, wire = floor.Valkey(), Wire()
        valkey.connection_made(wire)
        first, second = valkey.ask(b"first", 2), valkey.ask(b"second", 2)
        assert wire.sent == b"firstsecond"
        for at in range(0, len(answers), size):
            valkey.data_received(answers[at : at + size])
        assert await first == [b"a\r\n", b""]
        assert await second == [b"x", b"hello\r\nworld"]
