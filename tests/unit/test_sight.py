"""Who may see what while something is not known. The rule as a whole: tests/integration/test_visibility.py."""

from __future__ import annotations

import numpy as np
import pytest

from feedmesh.post.v1 import post_pb2 as pb
from runtime.media import MediaUrls
from runtime.relations import Relation
from services.post.people import Person
from services.post.sight import Sight

VIEWER, AUTHOR = 1, 2
URLS = MediaUrls("a secret of at least 32 characters")
PUBLIC, FOLLOWERS = pb.VISIBILITY_PUBLIC, pb.VISIBILITY_FOLLOWERS
OPEN, CLOSED = Person("ann", private=False), Person("ann", private=True)


def relation(*, follows: bool = False, blocked: bool = False) -> Relation:
    someone, nobody = np.array([AUTHOR]), np.array([], dtype=np.int64)
    following = someone if follows else nobody
    return Relation(1, following, following, someone if blocked else nobody, nobody, confirmed=0.0)


@pytest.mark.parametrize(
    ("follows", "kept", "people", "sees"),
    [
        (True, False, {AUTHOR: CLOSED}, (True, True)),
        (True, False, {}, (True, True)),  # whom one follows now, one follows whatever else is not known
        (True, True, {AUTHOR: OPEN}, (True, False)),
        (True, True, {AUTHOR: CLOSED}, (False, False)),
        (True, True, {}, (False, False)),
        (False, False, {}, (False, False)),
        (False, False, {AUTHOR: OPEN}, (True, False)),
        (False, False, {AUTHOR: None}, (False, False)),
        (True, False, {AUTHOR: None}, (False, False)),
    ],
)
def test_what_is_not_known_is_not_shown(
    follows: bool, kept: bool, people: dict[int, Person | None], sees: tuple[bool, bool]
) -> None:
    sight = Sight(VIEWER, relation(follows=follows), people, kept, URLS)
    assert (sight.sees(AUTHOR, PUBLIC), sight.sees(AUTHOR, FOLLOWERS)) == sees


def test_ones_own_is_seen_whatever_is_known_unless_one_is_erased() -> None:
    assert Sight(AUTHOR, relation(), {}, kept=True, urls=URLS).sees(AUTHOR, FOLLOWERS)
    assert not Sight(AUTHOR, None, {AUTHOR: None}, kept=False, urls=URLS).sees(AUTHOR, PUBLIC)


def test_a_block_hides_even_from_those_who_are_said_to_follow() -> None:
    sight = Sight(VIEWER, relation(follows=True, blocked=True), {AUTHOR: OPEN}, kept=False, urls=URLS)
    assert not sight.sees(AUTHOR, PUBLIC)
    assert not sight.shows(AUTHOR)
