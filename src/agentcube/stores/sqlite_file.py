"""The SQLite file of the embedded store: making, opening, checking, reading it, and its statements.

A file is never repaired, replaced or emptied here: what cannot be read is reported with a remedy.
Runs in the store's one thread; knows nothing of event loops.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_never

from agentcube.errors import StoreFailed
from agentcube.model.ids import SessionId
from agentcube.stores import codec
from agentcube.stores.tables import (
    Change,
    DropReservation,
    DropSession,
    DropTemplate,
    DropWarm,
    PutReservation,
    PutSession,
    PutTemplate,
    PutWarm,
)

SCHEMA_VERSION = 1
APPLICATION_ID = (
    0x41474342  # "AGCB" in the file's header, so that another program's file is not taken for ours
)

_SCHEMA = f"""
BEGIN;
CREATE TABLE sessions (id TEXT PRIMARY KEY, record TEXT NOT NULL, active_at_us INTEGER NOT NULL);
CREATE TABLE warm (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE templates (key TEXT PRIMARY KEY, generation INTEGER NOT NULL, record TEXT);
CREATE TABLE reservations (key TEXT PRIMARY KEY, record TEXT NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Statement = tuple[str, tuple[str | int | None, ...]]


def open_database(path: Path) -> sqlite3.Connection:
    """The store's database, made when it is absent, checked, and locked against other processes.

    Raises StoreFailed, naming the file and the remedy, when it is damaged, somebody else's, of a
    newer version, in use, or out of reach; then the file is as it was.
    """
    if not path.exists():
        _create(path)
    if path.is_file() and path.stat().st_size == 0:
        raise _damaged(path, "it is empty")
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=1)
    except sqlite3.Error as exc:
        raise _unusable(path, exc) from exc
    try:
        _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # a session's environment may hold secrets
    except sqlite3.Error as exc:
        connection.close()
        raise _unusable(path, exc) from exc
    except StoreFailed:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make an empty store under another name first: under its own it is whole or absent.

    With a rollback journal: a WAL could still hold what a full disk did not let into the file, and
    would not be renamed with it.
    """
    stray = Path(f"{path}-wal")
    if stray.exists():
        raise StoreFailed(
            f"{path} is missing but its journal {stray} is there: put the file back, or move the journal away"
            " to start with an empty store"
        )
    new = Path(f"{path}.new")
    try:
        for left in ("", "-journal", "-wal", "-shm"):
            Path(f"{new}{left}").unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
        new.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, sqlite3.Error) as exc:
        raise StoreFailed(f"the store {path} cannot be made: {exc}") from exc


def _check(connection: sqlite3.Connection, path: Path) -> None:
    # One process at a time: what this one holds in memory is the truth. It also does without the
    # shared memory file that WAL needs otherwise.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise StoreFailed(f"{path} is not an AgentCube store; choose another data directory")
    if version > SCHEMA_VERSION:
        raise StoreFailed(
            f"{path} was written by a newer AgentCube (store version {version}, this one knows up to"
            f" {SCHEMA_VERSION}): upgrade this one, or choose another data directory"
        )
    findings = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if findings != ["ok"]:
        raise _damaged(path, "; ".join(findings))


def _unusable(path: Path, exc: sqlite3.Error) -> StoreFailed:
    reason = str(exc)
    if "locked" in reason:
        return StoreFailed(f"{path} is in use by another process; stop that one first")
    if isinstance(exc, sqlite3.OperationalError):
        return StoreFailed(
            f"{path} cannot be opened: {reason}; check that it is a file we may read and write"
        )
    return _damaged(path, reason)


def _damaged(path: Path, reason: str) -> StoreFailed:
    return StoreFailed(
        f"the store {path} is damaged ({reason}). It was left as it is: restore it from a copy, or move it and"
        f" {path.name}-wal away to start with an empty store (sandboxes whose session is lost are then destroyed)"
    )


def load(connection: sqlite3.Connection, path: Path) -> list[Change]:
    """Everything in the file, as the changes that lead there from nothing. Raises StoreFailed."""
    try:
        return list(_rows(connection, path))
    except sqlite3.Error as exc:
        raise _damaged(path, str(exc)) from exc


def _rows(connection: sqlite3.Connection, path: Path) -> Iterable[Change]:
    for id, text, active_at_us in connection.execute("SELECT id, record, active_at_us FROM sessions"):
        session = codec.session_from_text(text, name=f"session {id} in {path}")
        active_at = _EPOCH + timedelta(microseconds=active_at_us)
        yield PutSession(replace(session, last_activity_at=max(active_at, session.last_activity_at)))
    for id, text in connection.execute("SELECT id, record FROM warm"):
        yield PutWarm(codec.warm_from_text(text, name=f"pool entry {id} in {path}"))
    for key, generation, text in connection.execute("SELECT key, generation, record FROM templates"):
        if text is None:
            yield DropTemplate(codec.key_from_text(key), generation)
        else:
            yield PutTemplate(codec.template_from_text(text, name=f"template {key} in {path}"))
    for key, text in connection.execute("SELECT key, record FROM reservations"):
        yield PutReservation(codec.reservation_from_text(text, name=f"idempotency key {key} in {path}"))


def statement(change: Change) -> Statement:
    """The SQL that makes `change` durable. Raises Invalid for a value that cannot be written."""
    match change:
        case PutSession(session):
            active_at_us = _microseconds(session.last_activity_at)
            values = (session.id, codec.session_to_text(session), active_at_us)
            return "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", values
        case DropSession(id):
            return "DELETE FROM sessions WHERE id = ?", (id,)
        case PutWarm(entry):
            return "INSERT OR REPLACE INTO warm VALUES (?, ?)", (entry.id, codec.warm_to_text(entry))
        case DropWarm(id):
            return "DELETE FROM warm WHERE id = ?", (id,)
        case PutTemplate(template):
            key, text = codec.key_to_text(template.key), codec.template_to_text(template)
            return "INSERT OR REPLACE INTO templates VALUES (?, ?, ?)", (key, template.generation, text)
        case DropTemplate(template_key, generation):
            key = codec.key_to_text(template_key)
            return "INSERT OR REPLACE INTO templates VALUES (?, ?, NULL)", (key, generation)
        case PutReservation(reservation):
            text = codec.reservation_to_text(reservation)
            return "INSERT OR REPLACE INTO reservations VALUES (?, ?)", (_ascii(reservation.key), text)
        case DropReservation(key):
            return "DELETE FROM reservations WHERE key = ?", (_ascii(key),)
        case _:
            assert_never(change)


def activity_statements(activity: Mapping[SessionId, datetime]) -> list[Statement]:
    """The SQL that notes activity."""
    sql = "UPDATE sessions SET active_at_us = ?1 WHERE id = ?2 AND active_at_us < ?1"
    return [(sql, (_microseconds(at), id)) for id, at in activity.items()]


def _ascii(key: str) -> str:
    """A client's text as one that any encoding can hold: a lone surrogate must not fail a commit."""
    return json.dumps(key)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
