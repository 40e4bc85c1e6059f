"""What a replica hears of posts makes it read what their authors wrote anew; what it misses, pages find out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from feedmesh.event.v1 import event_pb2
from launch.valkey import Running
from runtime import epochs, redis, streams
from services.timeline import news as news_module
from services.timeline.authors import Own
from services.timeline.news import TOPIC, News
from tests.fakes.serving import RealPostService

ANN, BOB = 11, 12


@pytest_asyncio.fixture
async def client(valkey: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    """A client of an empty Redis that the post service's relay has settled with. Each step is a look."""
    monkeypatch.setattr(news_module, "IDLE_S", 0.0)
    async with redis.connect(redis.RedisSettings(redis_url=valkey.url)) as client:
        await client.flushall()
        await client.set(epochs.marker_key(TOPIC), b"mesh:1")
        yield client


async def tell(client: Redis, event: event_pb2.Event) -> None:
    await client.xadd(streams.stream_key(TOPIC, 0), {streams.EVENT: event.SerializeToString()})


def known(own: Own) -> set[int]:
    return {user_id for user_id in (ANN, BOB) if own.get(user_id) is not None}


async def test_who_wrote_or_deleted_is_forgotten_and_nobody_else(client: Redis, post_service: RealPostService) -> None:
    own = Own(post_service.stub)
    news = News(client, own)
    await news.step()
    for event in (
        event_pb2.Event(event_id=1, post_created=event_pb2.PostCreated(post_id=5, author_id=ANN, original_id=5)),
        event_pb2.Event(event_id=2, post_deleted=event_pb2.PostDeleted(post_id=5, author_id=ANN)),
    ):
        await own.read([ANN, BOB])
        await tell(client, event)
        assert known(own) == {ANN, BOB}
        assert not await news.step()
        assert known(own) == {BOB}
    assert [item.post_id for item in news.by_authors({ANN: 0})] == [5, 5]
    await own.read([ANN, BOB])
    await tell(client, event_pb2.Event(event_id=3, like_changed=event_pb2.LikeChanged(post_id=5, author_id=ANN)))
    await news.step()
    assert known(own) == {ANN, BOB}
    await tell(client, event_pb2.Event(event_id=4, author_erased=event_pb2.AuthorErased(user_id=ANN)))
    await news.step()
    assert news.by_authors({ANN: 0}) == []


async def test_after_a_gap_it_goes_on_with_what_comes(client: Redis, post_service: RealPostService) -> None:
    own = Own(post_service.stub)
    news = News(client, own)
    await news.step()
    await own.read([ANN])
    await client.flushall()
    # While no relay has settled with this Redis there is nothing to hear.
    for _ in range(2):
        assert not await news.step()
    await client.set(epochs.marker_key(TOPIC), b"mesh:2")
    await news.step()
    made = event_pb2.PostCreated(post_id=5, author_id=ANN, original_id=5)
    await tell(client, event_pb2.Event(event_id=1, post_created=made))
    await news.step()
    assert known(own) == set()
