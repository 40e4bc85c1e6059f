"""What a text mentions: names as usernames are formed, and nothing that only looks like one."""

from __future__ import annotations

import pytest

from services.post.mentions import MAX_MENTIONS, names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no names", []),
        ("@ann", ["ann"]),
        ("hi @Ann, and @bob.", ["ann", "bob"]),
        ("(@ann) @ann! @ANN", ["ann"]),
        ("@a_b-c.d", ["a_b-c.d"]),
        ("@ann- @bob... @eve_", ["ann", "bob", "eve_"]),
        ("me@ann.example", []),
        ("ann@bob", []),
        ("https://example.org/@ann", []),
        ("@@ann", []),
        ("@ann@social.example", []),
        ("@", []),
        ("@-ann", []),
        ("\n@ann\t@bob", ["ann", "bob"]),
        ("@" + "a" * 64, ["a" * 64]),
        ("@" + "a" * 65, []),
        ("\u00e9@ann", ["ann"]),
    ],
)
def test_names_of_a_text(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_a_text_mentions_so_many_at_the_most() -> None:
    text = " ".join(f"@person{number}" for number in range(100))
    assert names(text) == [f"person{number}" for number in range(MAX_MENTIONS)]


def test_a_long_text_takes_no_time() -> None:
    for text in ("@" * 10_000, "@a" * 5_000, "@" + "a." * 5_000, "a" * 10_000 + "@"):
        assert len(names(text)) <= MAX_MENTIONS
