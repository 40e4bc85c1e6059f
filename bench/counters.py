"""The mesh's own counters, added up over its processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from bench.client import Client

DELIVERED, TRIED = "feedmesh_deliveries_total", "feedmesh_deliveries_tried_total"
FANNED_OUT, CANDIDATES = "feedmesh_fanout_posts_total", "feedmesh_feed_rows_total"
NAMES = {DELIVERED, TRIED, FANNED_OUT, CANDIDATES}


@dataclass(frozen=True, slots=True)
class Counters:
    """Their values at a moment, or how much they rose in between two."""

    seconds: float
    """The moment, of perf_counter, or the time in between."""
    values: Counter[tuple[str, ...]]
    """By name, and the value of the label where there is one. What nobody has counted yet is 0."""

    def since(self, before: Counters) -> Counters:
        """How much they rose. Nonsense after the restart of a process, which a demo does not survive unnoticed."""
        risen = Counter({key: value - before.values[key] for key, value in self.values.items()})
        return Counters(self.seconds - before.seconds, risen)


async def read(client: Client, addresses: Sequence[URL]) -> Counters:
    """What all processes have counted. One that does not answer is an error, and counts nothing."""
    values: Counter[tuple[str, ...]] = Counter()
    for address in addresses:
        reply = await client.get(address)
        if reply.status != 200:
            client.failed(f"{address}: {reply.describe()}")
            continue
        for family in text_string_to_metric_families(reply.body.decode()):
            for sample in family.samples:
                if sample.name in NAMES:
                    values[sample.name, *sample.labels.values()] += int(sample.value)
    return Counters(perf_counter(), values)
