"""Migrations on a real database: forward only, each whole or not at all, one process at a time."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import psycopg
import pytest

from runtime import migrate, postgres
from tests.fakes.databases import Databases, settings_of

numbers = itertools.count(1)
RUNTIME = len(list((Path(migrate.__file__).parent / "migrations").glob("*.sql")))
"""How many files every database gets before its service's own."""


class Package:
    """A package with migrations that a test writes."""

    def __init__(self, parent: Path) -> None:
        self.name = f"package{next(numbers)}"
        self.folder = parent / self.name / "migrations"
        self.folder.mkdir(parents=True)
        (parent / self.name / "__init__.py").touch()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    made = Package(tmp_path)
    made.write("0001_one.sql", "CREATE TABLE one (n integer); INSERT INTO one VALUES (1); -- 100%\n")
    made.write("0002_two.sql", "CREATE TABLE two (n integer);")
    monkeypatch.syspath_prepend(str(tmp_path))
    return made


async def query(dsn: str, text: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return await (await connection.execute(text.encode())).fetchall()


async def tables(dsn: str) -> set[object]:
    rows = await query(
        dsn, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return {name for (name,) in rows}


async def test_each_file_is_applied_once(databases: Databases, package: Package) -> None:
    dsn = await databases.empty()
    assert await migrate.migrate(dsn, package.name) == RUNTIME + 2
    assert await migrate.migrate(dsn, package.name) == 0
    assert await query(dsn, "SELECT n FROM one") == [(1,)]
    package.write("0003_three.sql", "INSERT INTO one VALUES (3)")
    assert await migrate.migrate(dsn, package.name) == 1
    assert await query(dsn, "SELECT n FROM one ORDER BY n") == [(1,), (3,)]
    assert await query(dsn, f"SELECT number, name FROM migrations WHERE area = '{package.name}' ORDER BY 1") == [
        (1, "one"),
        (2, "two"),
        (3, "three"),
    ]


@pytest.mark.parametrize("service", ["services.graph", "services.post"])
async def test_many_at_once_apply_each_file_once(databases: Databases, service: str) -> None:
    dsn = await databases.empty()
    applied = await asyncio.gather(*(migrate.migrate(dsn, service) for _ in range(4)))
    assert sorted(applied) == [0, 0, 0, len(migrate.migrations(service))]


async def test_a_file_that_changed_after_it_was_applied_is_refused(databases: Databases, package: Package) -> None:
    dsn = await databases.empty()
    await migrate.migrate(dsn, package.name)
    package.write("0001_one.sql", "CREATE TABLE one (n bigint)")
    package.write("0003_three.sql", "CREATE TABLE three (n integer)")
    with pytest.raises(RuntimeError, match=f"{package.name} 0001 has changed"):
        await migrate.migrate(dsn, package.name)
    assert "three" not in await tables(dsn)


@pytest.mark.parametrize("name", ["0004_four.sql", "0002_again.sql", "3_three.sql", "0003-three.sql", "0003_Three.sql"])
async def test_a_gap_a_repetition_or_a_strange_name_is_refused(
    databases: Databases, package: Package, name: str
) -> None:
    package.write(name, "CREATE TABLE other (n integer)")
    dsn = await databases.empty()
    with pytest.raises(ValueError, match="should be number"):
        await migrate.migrate(dsn, package.name)
    assert not await tables(dsn) & {"one", "two", "other"}


async def test_a_file_that_fails_leaves_nothing_of_itself_and_all_before_it(
    databases: Databases, package: Package
) -> None:
    package.write("0003_three.sql", "CREATE TABLE three (n integer); INSERT INTO one VALUES (3); SELECT 1 / 0;")
    dsn = await databases.empty()
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate.migrate(dsn, package.name)
    assert {"one", "two"} <= await tables(dsn)
    assert "three" not in await tables(dsn)
    assert await query(dsn, "SELECT n FROM one") == [(1,)]
    package.write("0003_three.sql", "CREATE TABLE three (n integer)")
    assert await migrate.migrate(dsn, package.name) == 1


async def test_an_unknown_package_is_refused(databases: Databases) -> None:
    with pytest.raises(ValueError, match="no package nosuchpackage"):
        await migrate.migrate(await databases.empty(), "nosuchpackage")


async def test_a_process_starts_only_on_a_database_that_has_its_files(
    databases: Databases, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn = await databases.empty()
    async with postgres.connect(settings_of(dsn)) as pool:
        for lacking in ("runtime 0001", f"{package.name} 0003"):
            with pytest.raises(SystemExit) as caught:
                await migrate.require(pool, package.name)
            assert caught.value.code == 2
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith(f"FEEDMESH_POSTGRES_DSN: the database lacks {lacking}")
            await migrate.migrate(dsn, package.name)
            await migrate.require(pool, package.name)
            package.write("0003_three.sql", "CREATE TABLE three (n integer)")
        await migrate.migrate(dsn, package.name)
        (package.folder / "0003_three.sql").unlink()
        await migrate.require(pool, package.name)  # a database that is ahead is fine
