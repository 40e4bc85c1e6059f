"""Whose address a request comes from: only trusted proxies can say another, and nothing that comes is an error."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.addresses import UNKNOWN, Addresses, network_of, networks

PROXY, INNER, CLIENT, SPOOFED = "10.0.0.1", "10.0.0.2", "203.0.113.7", "198.51.100.9"
BEHIND = Addresses(networks("10.0.0.0/8, fd00::/8"))
XFF, FORWARDED = b"x-forwarded-for", b"forwarded"


def client(*headers: tuple[bytes, str], peer: str | None = PROXY) -> str:
    """Whose a request with these headers is."""
    return BEHIND(peer, [(name, value.encode("latin-1")) for name, value in headers])


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (CLIENT, CLIENT),
        ("::ffff:203.0.113.7", CLIENT),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        (None, UNKNOWN),
        ("", UNKNOWN),
        ("/run/gateway.sock", UNKNOWN),
        ("testclient", UNKNOWN),
    ],
)
def test_a_peer_is_who_it_is(peer: str | None, address: str) -> None:
    spoofed = [(XFF, SPOOFED.encode()), (FORWARDED, b"for=" + SPOOFED.encode())]
    assert Addresses()(peer, spoofed) == address
    assert BEHIND(peer, spoofed) == address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (CLIENT, CLIENT),
        (f"{SPOOFED}, {CLIENT}", CLIENT),
        (f"{SPOOFED},{CLIENT} ,\t{INNER}", CLIENT),
        (f"{CLIENT}, {INNER}, ::ffff:10.0.0.3", CLIENT),
        (f"nonsense, {CLIENT}", CLIENT),
        (INNER, INNER),
        (f"{CLIENT}:1234", CLIENT),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        # Malformed where it counts.
        ("", PROXY),
        (f"{CLIENT},", PROXY),
        (f"{CLIENT}, unknown", PROXY),
        (f"{CLIENT}, nonsense, {INNER}", PROXY),
        (f"{CLIENT}:port", PROXY),
        (f"{CLIENT} {CLIENT}", PROXY),
        ("1" * 100_000, PROXY),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_past_trusted_proxies(value: str, address: str) -> None:
    assert client((XFF, value)) == address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"For={CLIENT};proto=https;by={PROXY}", CLIENT),
        (f"proto=https; for={CLIENT}", CLIENT),
        (f"for={SPOOFED}, for={CLIENT}", CLIENT),
        (f"for={SPOOFED}, for={CLIENT};proto=http, for={INNER}", CLIENT),
        (f'for="{CLIENT}:4711"', CLIENT),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        (r'for="203.0.113.\7"', CLIENT),
        (f'host="a,for={SPOOFED}";for={CLIENT}', CLIENT),
        # Malformed where it counts.
        ("for=unknown", PROXY),
        (f"for={CLIENT}, for=_hidden", PROXY),
        (f"for={CLIENT}, proto=https", PROXY),
        (f'for="{SPOOFED}, for={CLIENT}', PROXY),
        (f"for={CLIENT}, for", PROXY),
        (f"for=2001:db8::1, for={INNER}", PROXY),
        ("for=", PROXY),
        ("", PROXY),
    ],
)
def test_so_is_forwarded(value: str, address: str) -> None:
    assert client((FORWARDED, value)) == address


def test_a_header_that_comes_twice_is_one() -> None:
    assert client((XFF, SPOOFED), (b"host", "x"), (XFF, CLIENT)) == CLIENT


def test_where_both_headers_are_there_they_agree_or_the_proxy_counts() -> None:
    """One of them may be the client's own, that the proxy passed on."""
    assert client((XFF, CLIENT), (FORWARDED, f"for={CLIENT}")) == CLIENT
    assert client((XFF, CLIENT), (FORWARDED, f"for={SPOOFED}")) == PROXY
    assert client((XFF, SPOOFED), (FORWARDED, f"for={CLIENT}")) == PROXY
    assert client((XFF, CLIENT), (FORWARDED, "nonsense")) == PROXY


WORDS = b'for= For= " \\ , ; = [ ] :80 10.0.0.1 203.0.113.7 2001:db8::1 ::ffff:10.0.0.1 unknown _x % proto=https'
pieces = st.sampled_from([*WORDS.split(), b" ", b"\n", b"\xff"])
values = st.binary(max_size=40) | st.lists(pieces, max_size=12).map(b"".join)


@given(st.lists(st.tuples(st.sampled_from([XFF, FORWARDED, b"host"]), values), max_size=4))
@example([(FORWARDED, b'for="\n')])
def test_whatever_comes_it_is_an_address(headers: list[tuple[bytes, bytes]]) -> None:
    assert str(ip_address(BEHIND(PROXY, headers))) == BEHIND(PROXY, headers)


@given(values, st.sampled_from([CLIENT, "2001:db8::1"]))
def test_what_a_client_says_before_its_proxy_changes_nothing_or_makes_it_the_proxy(said: bytes, own: str) -> None:
    """The proxy adds the address that it sees to whatever the client sent."""
    added = f'for="[{own}]"' if ":" in own else f"for={own}"
    assert BEHIND(PROXY, [(XFF, said + b", " + own.encode())]) == own
    assert BEHIND(PROXY, [(FORWARDED, said + b", " + added.encode())]) in (own, PROXY)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (CLIENT, b"203.0.113.7"),
        (UNKNOWN, b"unknown"),
        ("2001:db8:1:2:3:4:5:6", b"2001:db8:1:2::/64"),
        ("2001:db8:1:2::", b"2001:db8:1:2::/64"),
        ("::1", b"::/64"),
    ],
)
def test_of_ipv6_a_client_has_a_64(address: str, network: bytes) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "here", ",", "10.0.0.0/8,"])
def test_networks_are_in_cidr_notation(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        networks(text)
    assert networks("") == ()
    assert [str(each) for each in networks("10.0.0.0/8, ::1")] == ["10.0.0.0/8", "::1/128"]
