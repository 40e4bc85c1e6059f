"""The figures: each method measures one of them once, and notes it under its name."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from statistics import median
from time import perf_counter

import numpy as np
import orjson
import psycopg
from yarl import URL

from bench import counters, cpu, drive, loads, textbook, visible
from bench.client import Client, DemoError
from bench.counters import DELIVERED
from bench.reads import first_pages, measure
from bench.report import percentile
from bench.world import Floor, World

CONNECTIONS = (1, 16, 64, 256)
BUSY = 64
"""Connections where rates and CPU are told of one number of them."""
LOADS = (0.25, 0.5, 0.75, 0.9)
"""Of the rate in a closed loop, for latencies in an open one."""
ORIENTATION = 1_000
"""Reads a second that the product's owner asks the latency of."""
BUSY_SHARE = 0.7
MIX = ((0.6, "GET /feed?user_id={reader}&limit=20"), (0.3, "GET /users/{author}/posts?viewer_id={reader}"))
"""What a mixed load consists of, as the demo's; the rest are new posts."""
MIXED = 20_000
"""Requests of a mixed load, then repeated."""
SPREAD = 40_000
"""Likes to spread: more than one run can make."""
REED_POSTS = 1_000
AT_REST, AT_ONCE = 40, 8
"""Posts that are looked for at rest, one after the other, and of those under load, at once."""
PACE_S = 0.5
"""Under load, each of these begins at most one so often: they are a load too."""
SETTLE_S, SETTLED_S, LOOK_S = 120.0, 1.0, 0.1
"""How long fan-out may take to catch up, how long it must be quiet for that, and how often it is looked at."""
FANOUT = "timeline-fanout"

# Totals and pending deltas of posts, against the rows that they count. Nothing comes back where they agree.
WRONG_COUNTS = """
    SELECT count(*) FROM (
        SELECT post_id, sum(likes) AS likes FROM (
            SELECT post_id, likes FROM post_counts UNION ALL SELECT post_id, likes FROM post_count_deltas
        ) AS part GROUP BY post_id
    ) AS counted
    FULL JOIN (SELECT post_id, count(*) AS likes FROM likes GROUP BY post_id) AS rows USING (post_id)
    WHERE coalesce(counted.likes, 0) <> coalesce(rows.likes, 0)"""


@dataclass
class Notes:
    """What was measured, by name: of each figure as many values as runs."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """One run's value."""
        self.values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> float:
        """The median of a figure; NaN of none."""
        found = self.values.get(name)
        return median(found) if found else float("nan")

    def starting(self, prefix: str) -> dict[str, float]:
        """The medians of all figures whose names begin so, by the rest of their names."""
        return {name.removeprefix(prefix): self[name] for name in self.values if name.startswith(prefix)}


class Figures:
    """Measures one mesh and one floor with the same population. Every method may raise DemoError."""

    def __init__(self, world: World, floor: Floor, client: Client, rng: Random, run: str) -> None:
        self.notes = Notes()
        self._world, self._floor, self._client, self._rng, self._run = world, floor, client, rng, run
        self._keys = count()
        self._liked: set[tuple[int, int]] = set()
        self._readers: list[int] = world.people.readers.tolist()
        self._reads = first_pages(rng.sample(self._readers, len(self._readers)))

    async def warm_up(self, seconds: float) -> None:
        """Reads whose figures do not count."""
        for base in (self._world.base, self._floor.base):
            await loads.closed(base, self._reads, connections=BUSY, seconds=seconds)

    async def reads(self, seconds: float) -> None:
        """Reads in a closed loop, mesh and floor in turn."""
        for connections in CONNECTIONS:
            for what, base, processes in (
                ("mesh", self._world.base, self._world.processes()),
                ("floor", self._floor.base, self._floor.processes),
            ):
                reads = await measure(base, processes, self._reads, connections=connections, seconds=seconds)
                self._note(f"{what} {connections}", reads.run)
                if connections == BUSY:
                    for name, ms in reads.cpu_ms.items():
                        self.notes.add(f"{what} cpu {name}", ms)
                    self.notes.add(f"{what} cpu", reads.total_ms)
        self.notes.add(
            "mesh / floor", self.notes.values[f"mesh {BUSY} rate"][-1] / self.notes.values[f"floor {BUSY} rate"][-1]
        )

    async def latencies(self, seconds: float) -> None:
        """Reads in an open loop: at the rate that is asked for, and at shares of what a closed one reached."""
        full = self.notes[f"mesh {BUSY} rate"]
        for name, base, rate in (
            # What of a latency is the generator's and the machine's.
            ("floor", self._floor.base, ORIENTATION),
            (str(ORIENTATION), self._world.base, ORIENTATION),
            *((f"{share:.0%}", self._world.base, share * full) for share in LOADS),
        ):
            self._note(f"open {name}", await loads.open_loop(base, self._reads, rate=rate, seconds=seconds))

    async def posts(self, seconds: float) -> None:
        """New posts by anybody, in a closed loop; then fan-out catches up."""
        requests = [self._new_post(self._rng.choice(self._readers)) for _ in range(2_000)]
        await self._writes("posts", requests, seconds)
        await self.settled()

    async def likes(self, seconds: float) -> None:
        """Likes on one post, and on posts at random; each person likes a post once. Afterwards every count is exact."""
        people = self._world.people
        author, *others = self._rng.sample(self._readers, len(self._readers))
        post = await self._write(author)
        viral = [self._like(user_id, post) for user_id in others]
        run = await self._writes("viral likes", viral, seconds, once=True)
        pairs = {
            (self._rng.randrange(people.plan.users), self._rng.randrange(len(people.authors))) for _ in range(SPREAD)
        }
        pairs -= set(zip(*(each.tolist() for each in people.likes[:2]), strict=True)) | self._liked
        self._liked |= pairs
        spread = [self._like(int(people.user_ids[person]), int(people.post_ids[at])) for person, at in pairs]
        await self._writes("spread likes", spread, seconds)
        reply = await self._client.get(self._client.url(f"/posts/{post}?viewer_id={author}"))
        async with await psycopg.AsyncConnection.connect(self._world.dsn("post")) as connection:
            [[rows]] = await (
                await connection.execute("SELECT count(*) FROM likes WHERE post_id = %s", (post,))
            ).fetchall()
            [[wrong]] = await (await connection.execute(WRONG_COUNTS)).fetchall()
        # What was under way at the end has a row and no answer; the first few may have been sent again.
        lost = max(0, min(run.requests, len(viral)) - BUSY - rows)
        self.notes.add("wrong counts", wrong + lost + (reply.json()["likes"] != rows))

    async def _writes(self, name: str, requests: Sequence[str], seconds: float, *, once: bool = False) -> loads.Run:
        before = cpu.spent(processes := self._world.processes())
        run = await loads.closed(self._world.base, requests, connections=BUSY, seconds=seconds, once=once)
        after = cpu.spent(processes)
        if run.refused:
            raise DemoError(f"{name}: {run.refused} of {run.requests} were refused")
        self._note(name, run)
        self.notes.add(f"{name} cpu", 1000 * (sum(after.values()) - sum(before.values())) / max(1, run.requests))
        return run

    async def fan_out(self) -> None:
        """One post by each star, then one by many of Reed, each delivered by a worker that has nothing else to do."""
        people = self._world.people
        await self._fanned_out("10,000", people.stars.tolist(), len(people.stars) * people.plan.users)
        followers = Counter(people.follows.following.tolist())
        people_of_reed = range(people.first_reed, people.count)
        # Who has more friends writes more, as in the demo.
        authors = self._rng.choices(people_of_reed, [followers[each] for each in people_of_reed], k=REED_POSTS)
        await self._fanned_out(
            "reed", people.user_ids[np.array(authors)].tolist(), sum(followers[author] for author in authors)
        )

    async def _fanned_out(self, name: str, authors: Sequence[int], wanted: int) -> None:
        await self.settled()
        delivered = (await self._delivered()).values[DELIVERED,]
        processes = self._world.processes()
        async with self._worker_held():
            await self._write_all(authors)
            await self._published()
            before = cpu.spent(processes)
        begun = last = perf_counter()
        done = 0
        while done < wanted:
            await asyncio.sleep(LOOK_S)
            counted = await self._delivered()
            if counted.values[DELIVERED,] - delivered > done:
                done, last = counted.values[DELIVERED,] - delivered, counted.seconds
            elif perf_counter() > last + 10:
                raise DemoError(f"of {wanted:,} deliveries {done:,} were made, and then none for 10 s")
        after = cpu.spent(processes)
        self.notes.add(f"fan-out {name}", done / (last - begun))
        for process, seconds in after.items():
            self.notes.add(f"fan-out {name} cpu {process}", 1e6 * (seconds - before[process]) / done)

    async def textbook(self, keys: Sequence[str]) -> None:
        """The same by the book."""
        post_ids = [self._world.people.plan.now_ms * 4096 + next(self._keys) for _ in range(3)]
        followers = self._world.people.plan.users
        work = partial(textbook.deliveries_a_second, self._floor.socket, keys, post_ids, followers=followers)
        self.notes.add("textbook", await asyncio.to_thread(work))

    async def visible_at_rest(self) -> None:
        """From 201 to a follower's feed, with nothing else to do."""
        await self.settled()
        await self._probed("rest", AT_REST, at_once=1)

    async def visible_under_load(self, seconds: float) -> None:
        """The same at 70 % of the mixed load that the mesh can take."""
        mix = self._mixed()
        full = await loads.closed(self._world.base, mix, connections=BUSY, seconds=seconds / 3)
        self._note("mix", full)
        await self.settled()
        rate = BUSY_SHARE * self.notes["mix rate"]
        load = asyncio.create_task(loads.open_loop(self._world.base, mix, rate=rate, seconds=seconds))
        try:
            await asyncio.sleep(1.5)  # until it is there
            await self._probed("load", None, at_once=AT_ONCE, until=load)
        finally:
            self._note("load", await load)
        await self.settled()

    async def _probed(
        self, name: str, probes: int | None, *, at_once: int, until: asyncio.Task[loads.Run] | None = None
    ) -> None:
        """Looks for posts, so many or until a load ends, each in the feed of one of the author's followers."""
        measured = drive.Measured()
        left = count(probes or 10_000, -1)
        errors: list[str] = []

        async def prober() -> None:
            while next(left) > 0 and not (until and until.done()):
                begun = perf_counter()
                follower, author = self._edge()
                post = drive.new_post(self._client, author, self._rng)
                if fault := await visible.seen(self._client, post, follower, self._key(), measured):
                    errors.append(fault)
                if until:
                    await asyncio.sleep(begun + PACE_S - perf_counter())

        await asyncio.gather(*(prober() for _ in range(at_once)))
        if len(errors) > len(measured.seconds) / 100:
            raise DemoError(f"{len(errors)} posts were not seen: {errors[0]}")
        ordered = sorted(measured.seconds)
        for share, what in ((0.5, "p50"), (0.99, "p99")):
            self.notes.add(f"visible {name} {what}", 1000 * percentile(ordered, share))
        self.notes.add(f"visible {name} probes", len(ordered))

    def memory(self) -> None:
        """What a timeline's entry takes in Redis, with everything that the list and its key need."""
        people = self._world.people
        sample = self._rng.sample(range(people.plan.users), min(500, people.plan.users))
        entries = sum(len(people.newest(person, 800)) for person in sample) / len(sample) * people.plan.users
        reed = sum(len(people.newest(person, 800)) for person in range(people.first_reed, people.count))
        self.notes.add("bytes an entry", self._world.list_bytes / (entries + reed))
        self.notes.add("entries a list", entries / people.plan.users)

    async def settled(self) -> None:
        """Waits until fan-out has nothing to do."""
        begun = changed = perf_counter()
        known = -1
        while perf_counter() < changed + SETTLED_S:
            delivered = (await self._delivered()).values[DELIVERED,]
            if delivered != known:
                known, changed = delivered, perf_counter()
            if changed > begun + SETTLE_S:
                raise DemoError(f"fan-out has not caught up after {SETTLE_S:.0f} s")
            await asyncio.sleep(LOOK_S)

    def _note(self, name: str, run: loads.Run) -> None:
        for what in ("rate", "p50_ms", "p99_ms", "max_ms", "refused", "dropped"):
            self.notes.add(f"{name} {what}", float(getattr(run, what)))
        self.notes.add(f"{name} generator", run.cpu_seconds / run.seconds)

    async def _delivered(self) -> counters.Counters:
        return await counters.read(self._client, [URL(self._world.metrics[FANOUT])])

    @asynccontextmanager
    async def _worker_held(self) -> AsyncIterator[None]:
        """Fan-out stands still for the block, so that work piles up for it."""
        workers = [pid for pid, name in self._world.processes().items() if name == "services.timeline.fanout"]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)

    async def _published(self) -> None:
        """Waits until every event is in its stream."""
        async with await psycopg.AsyncConnection.connect(self._world.dsn("post"), autocommit=True) as connection:
            until = perf_counter() + SETTLE_S
            while True:
                found = await connection.execute("SELECT count(*) FROM outbox WHERE published_at IS NULL")
                if await found.fetchone() == (0,):
                    return
                if perf_counter() > until:
                    raise DemoError("events are not published")
                await asyncio.sleep(LOOK_S)

    async def _write_all(self, authors: Sequence[int]) -> None:
        waiting = iter(authors)

        async def writer() -> None:
            for author in waiting:
                await self._write(author)

        await asyncio.gather(*(writer() for _ in range(AT_ONCE)))

    async def _write(self, author: int) -> int:
        post = drive.new_post(self._client, author, self._rng)
        answer = await self._client.write(post.url, orjson.loads(post.body), self._key())
        return int(answer["post_id"])

    def _new_post(self, author: int) -> str:
        return f"POST /posts {drive.new_post(self._client, author, self._rng).body.decode()}"

    def _like(self, user_id: int, post_id: int) -> str:
        return f'POST /like {{"user_id":{user_id},"post_id":{post_id}}}'

    def _edge(self) -> tuple[int, int]:
        """An ordinary reader and an ordinary author whom they follow, by their ids."""
        people = self._world.people
        while True:
            edge = self._rng.randrange(len(people.follows.follower))
            follower, following = int(people.follows.follower[edge]), int(people.follows.following[edge])
            if max(follower, following) < people.plan.users:
                return int(people.user_ids[follower]), int(people.user_ids[following])

    def _mixed(self) -> list[str]:
        made = []
        for _ in range(MIXED):
            reader, author = self._edge()
            draw = self._rng.random()
            for share, line in MIX:
                if draw < share:
                    made.append(line.format(reader=reader, author=author))
                    break
                draw -= share
            else:
                made.append(self._new_post(reader))
        return made

    def _key(self) -> str:
        return f"bench-{self._run}-{next(self._keys)}"
