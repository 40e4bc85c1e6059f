"""Schema changes: numbered SQL files, forward only, each in a transaction of its own, one process at a time.

`python -m runtime.migrate services.post` brings the database of FEEDMESH_POSTGRES_DSN up to date: first the runtime's
own files (runtime/migrations), then the service's (services/post/migrations). It is safe to run at any time and from
many places at once. A service refuses to start on a database that lacks a file of its.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg

from runtime import config, logs, postgres

log = logging.getLogger(__name__)

LOCK = 0x666D_6967
"""The advisory lock that a migrating process holds."""


@dataclass(frozen=True)
class Migration:
    """One file: whose it is, its place in the order, and its text."""

    area: str
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class MigrateSettings(config.Settings):
    """What a migration can be told."""

    postgres_dsn: postgres.Dsn
    """The database to bring up to date."""


def migrations(package: str) -> list[Migration]:
    """The files that a service's database needs, in order. Raises ValueError for a gap or a repeated number."""
    found = []
    for area in ("runtime", package):
        spec = importlib.util.find_spec(area)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"no package {area}")
        files = sorted((Path(spec.submodule_search_locations[0]) / "migrations").glob("*.sql"))
        for expected, file in enumerate(files, start=1):
            match = re.fullmatch(r"([0-9]{4})_([a-z0-9_]+)\.sql", file.name)
            if match is None or int(match[1]) != expected:
                raise ValueError(f"{area}: {file.name} should be number {expected:04}")
            found.append(Migration(area, expected, match[2], file.read_text()))
    return found


async def migrate(dsn: str, package: str) -> int:
    """Applies what the database lacks; returns how many files. Raises RuntimeError when an applied file has changed."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS migrations (
                area       text        NOT NULL,
                number     integer     NOT NULL,
                name       text        NOT NULL,
                checksum   text        NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
                PRIMARY KEY (area, number)
            )"""
        )
        done = await applied(connection)
        fresh = 0
        for migration in migrations(package):
            checksum = done.get((migration.area, migration.number))
            if checksum is None:
                async with connection.transaction():
                    await connection.execute(migration.sql.encode())
                    await connection.execute(
                        "INSERT INTO migrations (area, number, name, checksum) VALUES (%s, %s, %s, %s)",
                        (migration.area, migration.number, migration.name, migration.checksum),
                    )
                fresh += 1
                log.info("applied %s %04d %s", migration.area, migration.number, migration.name)
            elif checksum != migration.checksum:
                raise RuntimeError(f"{migration.area} {migration.number:04} has changed since it was applied")
        return fresh


async def applied(connection: postgres.Connection) -> dict[tuple[str, int], str]:
    """The checksums of the files that the database has, by area and number."""
    rows = await (await connection.execute("SELECT area, number, checksum FROM migrations")).fetchall()
    return {(area, number): checksum for area, number, checksum in rows}


async def require(pool: postgres.Pool, package: str) -> None:
    """Ends the process with one clear line when the database lacks a file. One that is ahead is fine."""
    async with pool.connection() as connection:
        try:
            done = await applied(connection)
        except psycopg.errors.UndefinedTable:
            done = {}
    lacking = [m for m in migrations(package) if (m.area, m.number) not in done]
    if lacking:
        config.fail(
            f"{config.PREFIX}POSTGRES_DSN: the database lacks {lacking[0].area} {lacking[0].number:04} "
            f"{lacking[0].name}: run `python -m runtime.migrate {package}`"
        )


def main() -> int:
    """The command line; returns the exit code."""
    if len(sys.argv) != 2:
        config.fail("usage: python -m runtime.migrate PACKAGE")
    settings = config.load(MigrateSettings)
    logs.configure("migrate", settings.log_level)
    try:
        asyncio.run(migrate(settings.postgres_dsn, sys.argv[1]))
    except (ValueError, RuntimeError, psycopg.Error) as error:
        config.fail(f"migrate {sys.argv[1]}: {' '.join(str(error).split())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
