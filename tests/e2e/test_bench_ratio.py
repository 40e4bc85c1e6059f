"""A feed read of the mesh against one of the floor: their ratio on a small population, never an absolute time.

The bound is generous, for what runs besides disturbs both and not alike; `make bench` has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from bench import loads, world
from bench.client import DemoError
from bench.population import Plan, Population
from bench.reads import Reads, first_pages, measure

PLAN = Plan(users=300, follows=100, writers=300, posts=10)
MOST = 25.0
"""CPU of a read: the mesh's, stores included, over the floor's."""
SECONDS = 2.0


async def reads(base: str, processes: dict[int, str], people: Population) -> Reads:
    requests = first_pages(people.readers.tolist())
    await measure(base, processes, requests, connections=16, seconds=SECONDS)  # warms up
    return await measure(base, processes, requests, connections=16, seconds=SECONDS)


async def fields(base: str, user_id: int) -> tuple[Sequence[str], Sequence[str]]:
    """The names on a page and on its first post."""
    async with aiohttp.ClientSession() as session, session.get(f"{base}/feed?user_id={user_id}") as response:
        page = await response.json()
    return sorted(page), sorted(page["posts"][0])


@pytest.mark.timeout(300)
def test_a_feed_read_takes_at_most_so_many_times_the_floors_cpu(tmp_path: Path) -> None:
    try:
        loads.find_wrk()
    except DemoError as missing:
        pytest.skip(str(missing))
    console = Console(quiet=True)
    people = world.prepare(console, tmp_path / "data", PLAN)
    reader = int(people.user_ids[0])

    async def of_mesh() -> tuple[Reads, object]:
        async with world.serving(console, tmp_path / "data", people) as mesh:
            return await reads(mesh.base, mesh.processes(), people), await fields(mesh.base, reader)

    mesh, shown = world.run(of_mesh())
    with world.flooring(console, tmp_path / "floor", people) as running:
        floor = world.run(reads(running.base, running.processes, people))
        assert world.run(fields(running.base, reader)) == shown, "the floor writes other JSON than the mesh"
    ratio = mesh.total_ms / floor.total_ms
    assert ratio <= MOST, f"a read takes {mesh.total_ms:.2f} ms of CPU, {ratio:.1f} times the floor's: {mesh.cpu_ms}"
