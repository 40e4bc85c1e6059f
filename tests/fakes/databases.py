"""Databases for tests on one embedded Postgres: a migrated one for each service, emptied between its users."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql

from launch.postgres import Server
from runtime import migrate, postgres

EMPTY = """
DO $$
DECLARE
    found record;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR found IN
        SELECT oid::regclass AS name FROM pg_class
        WHERE relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'migrations'
          AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('DELETE FROM %s', found.name);
    END LOOP;
END
$$"""
"""Removes every row: ten times faster than another copy of the template, which Postgres writes file by file."""


class Databases:
    """Lends databases. One that comes back is emptied and lent again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}
        self._free: dict[str, list[str]] = {}

    @asynccontextmanager
    async def lend(self, package: str) -> AsyncIterator[str]:
        """The DSN of a database with the tables of a service (for example `services.post`) and without a row."""
        free = self._free.setdefault(package, [])
        dsn = free.pop() if free else await self.copy(package)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute(EMPTY)
        yield dsn
        free.append(dsn)

    async def copy(self, package: str) -> str:
        """The DSN of a new database with the tables of a service, which the test may change as it likes."""
        if package not in self._templates:
            template = f"template_{package.replace('.', '_')}"
            await migrate.migrate(await self._create(template, "template1"), package)
            self._templates[package] = template
        return await self._create(f"test_{next(self._numbers)}", self._templates[package])

    async def empty(self) -> str:
        """The DSN of a new database without a table."""
        return await self._create(f"test_{next(self._numbers)}", "template1")

    async def _create(self, name: str, template: str) -> str:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        async with await psycopg.AsyncConnection.connect(self._server.dsn(), autocommit=True) as connection:
            await connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return self._server.dsn(name)


def settings_of(dsn: str) -> postgres.PostgresSettings:
    """What a process with this database is told."""
    return postgres.PostgresSettings(postgres_dsn=dsn)
