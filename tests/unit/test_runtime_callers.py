"""A caller is who holds the mesh's secret and says so; nobody else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import callers

SECRET = "what the processes of a mesh share"
ME = callers.caller("timeline-fanout", SECRET)


def named(*shown: str) -> str:
    return callers.Known(SECRET).named([("x-request-id", "1"), *((callers.KEY, each) for each in shown)])


def test_a_caller_of_the_mesh_is_known_by_name() -> None:
    known = callers.Known(SECRET)
    for _ in range(2):
        assert known.named([("user-agent", "x"), *ME.metadata]) == "timeline-fanout"


def test_the_proof_is_the_contracts() -> None:
    """As docs/grpc.md has it, for callers in other languages: by `openssl dgst -sha256 -hmac`."""
    assert callers.caller("reader", "0" * 64).shown == (
        "reader.6a19eb3e13ac285a472f4c083a176657e73da9bcea67ca0f5e929724e4b93fbd"
    )


@pytest.mark.parametrize(
    "shown",
    [
        "",
        ".",
        "gateway",
        "gateway.",
        ME.shown.replace("timeline-fanout", "gateway"),
        ME.shown.upper(),
        ME.shown[:-1],
        ME.shown + "0",
        callers.caller("timeline-fanout", SECRET + " ").shown,
        callers.caller("", SECRET).shown,
        callers.caller("a name.of two", SECRET).shown,
        callers.caller("x" * 64, SECRET).shown,
    ],
)
def test_nobody_else_is(shown: str) -> None:
    with pytest.raises(callers.Unknown):
        named(shown)


@given(st.text(max_size=100))
def test_no_words_pass_for_a_proof(words: str) -> None:
    with pytest.raises(callers.Unknown):
        named(words)


def test_whoever_shows_nothing_is_unknown() -> None:
    with pytest.raises(callers.Unknown):
        named()


def test_strangers_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = callers.Known(SECRET)
    assert known.named([*ME.metadata]) == ME.name
    for number in range(callers.MAX_KNOWN + 1):
        with pytest.raises(callers.Unknown):
            known.named([(callers.KEY, f"stranger.{number}")])
    computed: list[str] = []
    monkeypatch.setattr(callers, "caller", lambda name, _: computed.append(name))
    assert known.named([*ME.metadata]) == ME.name
    assert computed == []
