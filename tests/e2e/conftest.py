"""One mesh for all end-to-end tests that do no harm to it, and stores for clusters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.e2e import cluster
from tests.e2e import mesh as meshes


@pytest_asyncio.fixture(scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[meshes.Mesh]:
    """A whole mesh, shared."""
    with meshes.running(tmp_path_factory.mktemp("a mesh"), FEEDMESH_MORE_CALLERS="read-feed") as shared:
        yield shared
        await shared.http.aclose()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Stores]:
    """Postgres and Valkey of a cluster, or of several."""
    with cluster.stores(tmp_path_factory.mktemp("stores")) as own:
        yield own
