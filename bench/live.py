"""`python -m bench.live`: clients that are told live, how soon, and that nothing is lost when something is killed."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
from rich.console import Console

from bench import cpu, results, world
from bench.client import Client, DemoError, Failed, connect
from bench.figures import BUSY, Notes
from bench.loads import find_wrk
from bench.population import Plan, Population
from bench.reads import first_pages, measure
from bench.report import hardware, markdown, percentile

PEOPLE, FOLLOWS = 10_000, 100
FEW, BUSY_RATE = 1_000, 200
"""Clients, and posts a second, of the figure of latency."""
MANY, RATE = 10_000, 50
FIGURES = ("latency", "many", "reads")
VICTIMS = ("services.timeline", "gateway", "valkey-server")
CONNECTING = 200
"""Clients that connect at once, as long as nothing has been killed."""
LATE_S = 120.0
"""For so long it is waited for what is missing."""
AGAIN_S = (0.1, 3.0)
"""How long a client waits until it comes back, each another time within these."""
WRITERS = 16
BEFORE_S, AFTER_S = 5.0, 20.0
"""How long posts are written before something is killed, and from then on."""


@dataclass(eq=False)
class Reader:
    """A client with a WebSocket, that comes back with its last token whatever happens."""

    user_id: int
    crowd: Crowd
    last: str = ""
    connections: int = 0
    refused: int = 0
    gaps: int = 0
    told: dict[int, float] = field(default_factory=dict)
    """When, by post; since the last gap."""
    read: set[int] = field(default_factory=set)
    """What the feed had, that was read again after a gap."""
    again: int = 0
    """Posts that were told twice."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            async with self.crowd.connecting:
                socket = await self._connect()
            if socket is not None:
                self.connections += 1
                with suppress(aiohttp.ClientError, OSError):
                    async for message in socket:
                        await self._heed(orjson.loads(message.data))
                self.ready.clear()
                with suppress(aiohttp.ClientError, OSError):
                    await socket.close()
            await asyncio.sleep(self.crowd.rng.uniform(*AGAIN_S))

    async def _connect(self) -> aiohttp.ClientWebSocketResponse | None:
        url = f"{self.crowd.base}/live?user_id={self.user_id}&token={self.last}"
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            socket = await self.crowd.session.ws_connect(url, max_msg_size=0)
            with suppress(TypeError):  # it closed at once
                await self._heed(await socket.receive_json(loads=orjson.loads))
                return socket
        self.refused += 1
        return None

    async def _heed(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "post_added":
            post_id = event["post"]["post_id"]
            self.again += post_id in self.told
            self.told[post_id] = time.perf_counter()
        elif kind == "gap":
            self.gaps += 1
            self.told.clear()
            await self._reload()
        self.last = event.get("token", self.last)
        self.ready.set()

    async def _reload(self) -> None:
        url = f"{self.crowd.base}/feed?user_id={self.user_id}&order=latest&limit=100"
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with self.crowd.reading, self.crowd.session.get(url) as response:
                    if response.status == 200:
                        posts = orjson.loads(await response.read())["posts"]
                        self.read.update(post["post_id"] for post in posts)
                        return
            await asyncio.sleep(self.crowd.rng.uniform(*AGAIN_S))


class Crowd:
    """Clients of one gateway, and what they are to be told."""

    def __init__(self, base: str, session: aiohttp.ClientSession, people: Population, count: int) -> None:
        self.base = base
        self.session = session
        self.rng = Random(count)  # noqa: S311 - the same every time
        self.connecting = asyncio.Semaphore(CONNECTING)
        self.reading = asyncio.Semaphore(CONNECTING)
        self.readers = {number: Reader(int(people.user_ids[number]), self) for number in range(count)}
        self.people = people
        self.wanted: dict[int, list[tuple[int, float]]] = {number: [] for number in self.readers}
        """By client, the posts that were acknowledged meanwhile, and when."""
        self._followers: dict[int, list[int]] = {}
        for follower, following in zip(
            people.follows.follower.tolist(), people.follows.following.tolist(), strict=True
        ):
            if follower in self.readers:
                self._followers.setdefault(following, []).append(follower)

    async def ready(self, seconds: float = LATE_S) -> float:
        """Waits until all are connected; how long that took. Raises DemoError."""
        begun = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for reader in self.readers.values():
                    await reader.ready.wait()
                return time.perf_counter() - begun
        raise DemoError(f"not all of {len(self.readers)} clients could connect")

    async def write(self, client: Client, rate: float, seconds: float) -> float:
        """Posts at a rate by authors at random, and says when each was acknowledged; posts a second as it was."""
        count = int(rate * seconds)
        numbers = iter(range(count))
        url, run, begun = client.url("/posts"), secrets.token_hex(4), time.perf_counter()
        authors = sorted(self._followers)

        async def writer() -> None:
            for number in numbers:
                await asyncio.sleep(begun + number / rate - time.perf_counter())
                author = self.rng.choice(authors)
                body = {"user_id": int(self.people.user_ids[author]), "content": f"post {number} of {run}"}
                try:
                    post = await client.write(url, body, f"live-{run}-{number}")
                except Failed as failed:
                    raise DemoError(f"a post was refused: {failed}") from None
                at = time.perf_counter()
                for follower in self._followers[author]:
                    self.wanted[follower].append((post["post_id"], at))

        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        return count / (time.perf_counter() - begun)

    def missing(self) -> int:
        """Deliveries that are still to come."""
        return sum(
            post_id not in self.readers[number].told and post_id not in self.readers[number].read
            for number, posts in self.wanted.items()
            for post_id, _ in posts
        )

    async def settled(self, seconds: float) -> None:
        """Waits until nothing is missing, at most so long."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and self.missing():  # noqa: ASYNC110 - to look is all that one can do
            await asyncio.sleep(0.25)

    def latencies(self) -> list[float]:
        """From each 201 to each delivery, rising, in ms; what the feed had after a gap is none."""
        return sorted(
            1000 * (self.readers[number].told[post_id] - at)
            for number, posts in self.wanted.items()
            for post_id, at in posts
            if post_id in self.readers[number].told
        )

    def forget(self) -> None:
        """Begins to count anew."""
        for number, reader in self.readers.items():
            self.wanted[number].clear()
            reader.read.clear()
            reader.told.clear()
            reader.again = reader.gaps = reader.refused = 0
            reader.connections = 1

    def total(self, name: str) -> int:
        """Of all clients."""
        return sum(getattr(reader, name) for reader in self.readers.values())


@asynccontextmanager
async def listening(base: str, people: Population, count: int) -> AsyncIterator[Crowd]:
    """So many clients for the block, all connected."""
    # Never kept alive: a gateway that was killed leaves none behind.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        crowd = Crowd(base, session, people, count)
        running = [asyncio.create_task(reader.run()) for reader in crowd.readers.values()]
        try:
            await crowd.ready()
            yield crowd
        finally:
            for task in running:
                task.cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
        for each in ended:
            if isinstance(each, Exception) and not isinstance(each, asyncio.CancelledError):
                raise each


def resident(pids: dict[int, str], name: str) -> float:
    """MiB that the processes of this name hold."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid, each in pids.items() if each == name)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def _measure(console: Console, folder: Path, people: Population, arguments: argparse.Namespace) -> Notes:
    notes = Notes()
    # Who reads feeds has a list.
    readers: Sequence[int] | None = None if "reads" in arguments.only else []
    async with world.serving(console, folder, people, readers=readers) as mesh, connect(mesh.base, WRITERS) as client:
        seconds, few = arguments.seconds, min(FEW, arguments.clients)
        if "reads" in arguments.only:
            requests = first_pages(people.readers.tolist())
            for run in range(4):
                for sockets in (0, few):
                    async with listening(mesh.base, people, sockets):
                        reads = await measure(
                            mesh.base, mesh.processes(), requests, connections=BUSY, seconds=seconds / 3
                        )
                    if run:
                        notes.add(f"reads beside {sockets}", reads.run.rate)
                        notes.add(f"reads beside {sockets} p99_ms", reads.run.p99_ms)
            notes.add("reads kept", notes[f"reads beside {few}"] / notes["reads beside 0"])
            console.print(f"reads beside {few}: {notes['reads kept']:.2f} ×")
        if "latency" in arguments.only:
            async with listening(mesh.base, people, few) as crowd:
                await crowd.write(client, BUSY_RATE / 4, 2)
                await _delivered(console, mesh, crowd, client, notes, "few", BUSY_RATE, seconds)
        if "many" in arguments.only:
            before = {name: resident(mesh.processes(), name) for name in ("gateway", "services.timeline")}
            async with listening(mesh.base, people, arguments.clients) as crowd:
                await asyncio.sleep(2)
                for name, mib in before.items():
                    grown = 1024 * (resident(mesh.processes(), name) - mib) / arguments.clients
                    notes.add(f"{name} KiB", grown)
                    console.print(f"{name}: {grown:.1f} KiB a connection")
                await _delivered(console, mesh, crowd, client, notes, "many", arguments.rate, seconds)
                for victim in arguments.kill:
                    await _killed(console, mesh, crowd, client, notes, victim, arguments.rate)
    return notes


async def _delivered(
    console: Console,
    mesh: world.World,
    crowd: Crowd,
    client: Client,
    notes: Notes,
    name: str,
    rate: float,
    seconds: float,
) -> None:
    crowd.forget()
    processes = mesh.processes()
    before, own = cpu.spent(processes), time.process_time()
    written = await crowd.write(client, rate, seconds)
    await crowd.settled(10)
    own = time.process_time() - own
    times = crowd.latencies()
    wanted = sum(map(len, crowd.wanted.values()))
    for what, value in (
        ("rate", written),
        ("wanted", wanted),
        ("missing", crowd.missing()),
        ("again", crowd.total("again")),
        ("p50_ms", percentile(times, 0.5)),
        ("p99_ms", percentile(times, 0.99)),
    ):
        notes.add(f"{name} {what}", value)
    console.print(
        f"{name}: {len(crowd.readers):,} clients, {written:.0f} posts/s, {wanted:,} deliveries,"
        f" {crowd.missing()} missing, {crowd.total('again')} twice, p50 {percentile(times, 0.5):.0f} ms,"
        f" p99 {percentile(times, 0.99):.0f} ms"
    )
    # With what the posts themselves take.
    for process, taken in cpu.spent(processes).items():
        notes.add(f"{name} cpu {process}", 1000 * (taken - before.get(process, 0)) / max(wanted, 1))
    for process, ms in sorted(notes.starting(f"{name} cpu ").items(), key=lambda each: -each[1]):
        console.print(f"  {process:<28} {ms:.3f} ms of CPU a delivery")
    console.print(f"  {'these clients':<28} {1000 * own / max(wanted, 1):.3f} ms")


async def _killed(
    console: Console, mesh: world.World, crowd: Crowd, client: Client, notes: Notes, victim: str, rate: float
) -> None:
    crowd.forget()
    # All come back at once, as they would.
    crowd.connecting = asyncio.Semaphore(len(crowd.readers))
    writing = asyncio.create_task(crowd.write(client, rate, BEFORE_S + AFTER_S))
    await asyncio.sleep(BEFORE_S)
    [pid] = [pid for pid, name in mesh.processes().items() if name == victim]
    os.kill(pid, signal.SIGKILL)
    await writing
    await crowd.settled(LATE_S)
    times = crowd.latencies()
    back = crowd.total("connections") - len(crowd.readers)
    for what, value in (
        ("wanted", sum(map(len, crowd.wanted.values()))),
        ("missing", crowd.missing()),
        ("again", crowd.total("again")),
        ("gaps", crowd.total("gaps")),
        ("refused", crowd.total("refused")),
        ("back", back),
        ("p99_s", percentile(times, 0.99) / 1000),
        ("longest_s", times[-1] / 1000),
    ):
        notes.add(f"{victim} {what}", value)
    console.print(
        f"kill -9 of {victim}: {sum(map(len, crowd.wanted.values())):,} deliveries, {crowd.missing()} lost,"
        f" {crowd.total('again')} twice, {crowd.total('gaps')} gaps, {crowd.total('refused')} times refused,"
        f" {back} came back; p99 {percentile(times, 0.99) / 1000:.1f} s, the latest after {times[-1] / 1000:.1f} s"
    )


def _page(notes: Notes, people: Population, arguments: argparse.Namespace, seconds: float) -> str:
    reads, sockets = notes.starting("reads beside "), min(FEW, arguments.clients)
    few = f"{sockets:,} sockets, {BUSY_RATE} posts/s"
    many = f"{arguments.clients:,} sockets, {arguments.rate:g} posts/s"
    bounds = [
        results.Bound(f"{few}: from 201 to the socket, p50 ms", notes["few p50_ms"], _ms(notes["few p50_ms"]), most=50),
        results.Bound(f"{few}: p99 ms", notes["few p99_ms"], _ms(notes["few p99_ms"]), most=250),
        results.Bound(f"{many}: p99 ms", notes["many p99_ms"], _ms(notes["many p99_ms"]), most=1_000),
        results.Bound(
            f"{many}: deliveries that did not come, of {notes['many wanted']:,.0f}",
            notes["many missing"] + notes["many again"],
            f"{notes['many missing']:.0f}, and {notes['many again']:.0f} twice",
            most=0,
        ),
        *(
            results.Bound(
                f"kill -9 of {victim}: lost or repeated, of {notes[f'{victim} wanted']:,.0f}",
                notes[f"{victim} missing"] + notes[f"{victim} again"],
                f"{notes[f'{victim} missing']:.0f}, and {notes[f'{victim} again']:.0f} twice",
                most=0,
            )
            for victim in arguments.kill
        ),
        results.Bound(
            f"feed reads/s at {BUSY} connections beside {sockets:,} sockets, of those without",
            notes["reads kept"],
            f"{notes['reads kept']:.2f} ({reads[str(sockets)]:,.0f}/s of {reads['0']:,.0f}/s)",
            least=0.9,
        ),
    ]
    cpus = [notes.starting(f"{name} cpu ") for name in ("few", "many")]
    kills = [
        (
            victim,
            *(f"{notes[f'{victim} {what}']:,.0f}" for what in ("gaps", "refused", "back")),
            *(f"{notes[f'{victim} {what}']:.1f}" for what in ("p99_s", "longest_s")),
        )
        for victim in arguments.kill
    ]
    return "\n".join(
        [
            "# Live updates",
            "",
            f"On {hardware()}. {seconds:.0f} s in all, one run, clients and all.",
            "",
            *markdown([("figure", "bound", "measured", "met"), *(bound.row() for bound in bounds)]),
            "",
            f"{people.plan.users:,} people who follow {people.plan.follows} each; authors at random. {many}: p50"
            f" {_ms(notes['many p50_ms'])} ms. A connection takes {notes['gateway KiB']:.0f} KiB in the gateway and"
            f" {notes['services.timeline KiB']:.0f} KiB in the timeline service.",
            "",
            "CPU of one delivery, with all that the posts themselves take, in milliseconds:",
            "",
            *markdown(
                [
                    ("process", few, many),
                    *(
                        (name, *(f"{each.get(name, 0):.3f}" for each in cpus))
                        for name in sorted(cpus[1], key=lambda name: -cpus[1][name])
                        if cpus[1][name] >= 0.0005
                    ),
                ]
            ),
            "",
            f"`kill -9`, while {many} go on; all clients come back at once:",
            "",
            *markdown([("killed", "gaps", "refused", "came back", "p99 s", "longest s"), *kills]),
            "",
        ]
    )


def _ms(value: float) -> str:
    return f"{value:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where it could not be measured. Bounds that are not met are shown, and no failure."""
    arguments = _arguments(argv)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    begun = time.perf_counter()
    try:
        if "reads" in arguments.only:
            find_wrk()
        with world.temporary() as temporary:
            folder = (arguments.data or temporary / "data").absolute()
            plan = Plan(users=arguments.people, follows=FOLLOWS, writers=arguments.people, posts=4)
            people = world.prepare(console, folder, plan)
            notes = world.run(_measure(console, folder, people, arguments))
    except DemoError as error:
        console.print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if set(arguments.only) == set(FIGURES):
        arguments.results.mkdir(parents=True, exist_ok=True)
        text = _page(notes, people, arguments, time.perf_counter() - begun)
        (arguments.results / "live.md").write_text(text)
        console.print(text)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__)
    parser.add_argument("--clients", type=int, default=MANY, help="WebSockets of the larger figures (default 10000)")
    parser.add_argument("--rate", type=float, default=RATE, help="posts a second beside them (default 50)")
    parser.add_argument("--seconds", type=float, default=15, help="how long one run takes (default 15)")
    parser.add_argument("--people", type=int, default=PEOPLE, help="who follow and write (default 10000)")
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, help="where live.md is written when all is measured"
    )
    parser.add_argument("--data", type=Path, help="a folder that keeps the population")
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--kill", nargs="*", choices=VICTIMS, default=list(VICTIMS), help="what is killed in turn")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
