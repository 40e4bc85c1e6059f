"""Fan-out as other feed systems do it: a sorted set a follower, into which Python adds and trims, pipelined."""

from __future__ import annotations

import time
from collections.abc import Sequence

from redis import Redis

from bench.population import Population

CAP = 800
FOLLOWERS = 2_000
"""People whose sets are filled; a post to more of them goes round them again."""
PIPELINED = 500
"""Followers of one round trip."""


def fill(socket: str, people: Population) -> list[str]:
    """Makes full sets of some people; their keys."""
    client = Redis(unix_socket_path=socket)
    keys = []
    for person in range(min(FOLLOWERS, people.plan.users)):
        key = f"textbook:{people.user_ids[person]}"
        post_ids = people.post_ids[people.newest(person, CAP)].tolist()
        client.zadd(key, {str(post_id): post_id for post_id in post_ids})
        keys.append(key)
    client.close()
    return keys


def deliveries_a_second(socket: str, keys: Sequence[str], post_ids: Sequence[int], *, followers: int) -> float:
    """Delivers posts, higher than all before, to so many followers each."""
    client = Redis(unix_socket_path=socket)
    rounds = [keys[at % len(keys)] for at in range(followers)]
    begun = time.perf_counter()
    for post_id in post_ids:
        for at in range(0, followers, PIPELINED):
            pipeline = client.pipeline(transaction=False)
            for key in rounds[at : at + PIPELINED]:
                pipeline.zadd(key, {str(post_id): post_id})
                pipeline.zremrangebyrank(key, 0, -CAP - 1)
            pipeline.execute()
    seconds = time.perf_counter() - begun
    client.close()
    return len(post_ids) * followers / seconds
