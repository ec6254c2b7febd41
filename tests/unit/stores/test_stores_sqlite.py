"""What the embedded store promises about its file, beyond the contract."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agentcube.errors import Invalid, StaleRevision, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.ports.store import SessionQuery
from agentcube.stores.sqlite import SqliteStore
from agentcube.stores.sqlite_file import open_database
from agentcube.testing.eventually import eventually
from agentcube.testing.samples import NOW, full_session, sample_session, sample_template, sample_warm

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


def snapshot(path: Path, to: Path) -> Path:
    """The file and its journal as they are now, as a power cut would leave them."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for part in (path, Path(f"{path}-wal")):
        if part.exists():
            shutil.copy(part, to / part.name)
    return to / path.name


async def sessions_in(path: Path) -> dict[SessionId, Session]:
    async with SqliteStore.open(path) as store:
        return {s.id: s for s in (await store.list(SessionQuery(limit=1000))).sessions}


async def make(path: Path) -> Session:
    async with SqliteStore.open(path) as store:
        return await store.insert(full_session())


# Durability


async def test_what_is_acknowledged_is_on_disk(path: Path, tmp_path: Path) -> None:
    async with SqliteStore.open(path) as store:
        session = await store.insert(sample_session())
        assert await sessions_in(snapshot(path, tmp_path / "1")) == {session.id: session}
        changed = await store.replace(replace(session, message="changed"))
        assert await sessions_in(snapshot(path, tmp_path / "2")) == {session.id: changed}
        await store.delete(session.id, revision=2)
        assert await sessions_in(snapshot(path, tmp_path / "3")) == {}


async def test_every_commit_is_synced(path: Path) -> None:
    with closing(open_database(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


async def test_what_is_readable_is_on_disk(path: Path, tmp_path: Path) -> None:
    async with SqliteStore.open(path) as store:
        changes = store.changes()
        async with asyncio.TaskGroup() as tasks:
            for i in range(20):
                tasks.create_task(store.insert(sample_session(str(i))))
            heard = [await anext(changes)]
            readable = {s.id for s in (await store.list(SessionQuery())).sessions}
            copy = snapshot(path, tmp_path / "copy")
        assert heard[0] in readable
        assert readable <= (await sessions_in(copy)).keys()


async def test_a_relaxed_change_waits_for_no_disk_and_gets_there(path: Path) -> None:
    async with SqliteStore.open(path) as store:
        session = await store.insert(sample_session())
        with pytest.raises(StopIteration) as done:
            store.replace(replace(session, message="relaxed"), relaxed=True).send(None)
        changed: Session = done.value.value
        assert store.peek(session.id) == changed
    assert await sessions_in(path) == {session.id: changed}


async def test_a_relaxed_change_does_not_overtake_one_that_waits(path: Path) -> None:
    async with SqliteStore.open(path) as store:
        session = await store.insert(sample_session())
        first = asyncio.ensure_future(store.replace(replace(session, message="first")))
        await asyncio.sleep(0)  # it is on its way
        later = replace(session, message="later", revision=2)
        changed, _ = await asyncio.gather(store.replace(later, relaxed=True), first)
        assert await store.get(session.id) == changed == replace(later, revision=3)
    assert await sessions_in(path) == {session.id: changed}


async def test_a_refusal_waits_until_what_refused_it_is_on_disk(path: Path) -> None:
    async with SqliteStore.open(path) as store:
        old = await store.insert(sample_session())
        won, lost = await asyncio.gather(store.replace(old), store.replace(old), return_exceptions=True)
        assert isinstance(lost, StaleRevision)
        assert won == await store.get(old.id)

        async def refused() -> Session:
            with pytest.raises(StaleRevision):
                await store.replace(old)
            return await store.get(old.id)

        newer, seen = await asyncio.gather(store.replace(won), refused())
        assert seen == newer  # else its caller would read the old revision and try in vain


async def test_a_killed_process_loses_nothing_that_it_acknowledged(path: Path) -> None:
    script = """
        import asyncio, pathlib, sys
        from dataclasses import replace
        from agentcube.stores.sqlite import SqliteStore
        from agentcube.testing.samples import sample_session, sample_warm

        async def write(store, name):
            for i in range(1_000_000):
                entry = sample_warm()
                await store.put_warm(entry)
                session = await store.claim_warm(sample_session(f"{name}-{i}"))
                session = await store.replace(replace(session, message="kept"))
                print(session.id, session.sandbox.id, flush=True)

        async def main():
            async with SqliteStore.open(pathlib.Path(sys.argv[1])) as store:
                await asyncio.gather(*(write(store, n) for n in range(8)))

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        process.kill()
        lines += [line for line in process.stdout if line.endswith("\n")]
    acknowledged = [SessionId(line.split()[0]) for line in lines]
    sandboxes = {line.split()[1] for line in lines}
    assert len(acknowledged) == len(sandboxes) >= 200
    async with SqliteStore.open(path) as store:
        for id in acknowledged:
            assert (await store.get(id)).message == "kept"
        assert not sandboxes & {e.id for e in await store.list_warm()}


async def test_activity_is_written_within_the_flush_interval(path: Path, tmp_path: Path) -> None:
    async with SqliteStore.open(path, flush_interval=timedelta(milliseconds=1)) as store:
        session = await store.insert(sample_session())
        at = NOW + timedelta(seconds=1)
        await store.touch({session.id: at})

        async def written() -> bool:
            return (await sessions_in(snapshot(path, tmp_path / "copy")))[session.id].last_activity_at == at

        await eventually(written)


async def test_activity_rides_with_the_next_commit_and_with_the_close(path: Path, tmp_path: Path) -> None:
    first, second = NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)
    async with SqliteStore.open(path, flush_interval=timedelta(days=1)) as store:
        session = await store.insert(sample_session())
        await store.touch({session.id: first})
        assert (await store.get(session.id)).last_activity_at == first
        await store.put_warm(sample_warm())
        copy = snapshot(path, tmp_path / "copy")
        assert (await sessions_in(copy))[session.id].last_activity_at == first
        await store.touch({session.id: second})
    assert (await sessions_in(path))[session.id].last_activity_at == second


async def test_closing_keeps_what_waits_and_refuses_what_comes_later(path: Path) -> None:
    async with SqliteStore.open(path) as store:
        writes = [asyncio.ensure_future(store.insert(sample_session(str(i)))) for i in range(30)]
        await asyncio.sleep(0)
    assert len(await asyncio.gather(*writes)) == 30
    with pytest.raises(StoreFailed, match="closed"):
        await store.insert(sample_session())
    assert len(await sessions_in(path)) == 30


async def test_an_interrupted_use_closes_the_file(path: Path) -> None:
    async def use() -> None:
        async with SqliteStore.open(path) as store:
            await store.insert(sample_session())
            await asyncio.Event().wait()

    using = asyncio.ensure_future(use())
    await asyncio.sleep(0.05)
    using.cancel()
    await asyncio.wait([using])
    assert using.cancelled()
    await sessions_in(path)


async def test_a_value_that_cannot_be_written_fails_its_caller_alone(path: Path) -> None:
    async with SqliteStore.open(path) as store:
        with pytest.raises(Invalid):
            await store.put_template(sample_template(manifest={"when": NOW}))
        assert await store.list_templates() == []
        assert (await store.put_template(sample_template())).generation == 1


# A commit that fails


async def test_a_failed_commit_fails_the_store_and_pretends_nothing(path: Path) -> None:
    """In a process of its own, whose files may not grow beyond what is there: a full disk."""
    script = """
        import asyncio, os, pathlib, resource, sys
        from dataclasses import replace
        from agentcube.errors import SessionNotFound, StoreFailed
        from agentcube.stores.sqlite import SqliteStore
        from agentcube.testing.samples import NOW, sample_session

        path = pathlib.Path(sys.argv[1])

        async def refused(call):
            try:
                await call
            except StoreFailed as exc:
                return exc.detail
            raise AssertionError("a write was acknowledged")

        async def main():
            async with SqliteStore.open(path) as store:
                kept = await store.insert(sample_session("kept"))
                limits = resource.getrlimit(resource.RLIMIT_FSIZE)
                size = os.stat(f"{path}-wal").st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
                writes = [store.insert(sample_session(f"lost-{i}")) for i in range(20)]
                details = {await task for task in [asyncio.ensure_future(refused(w)) for w in writes]}
                assert len(details) == 1 and "cannot be written" in details.pop()
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                for call in (
                    store.replace(kept), store.touch({}), store.check(),
                    store.lease_due(now=NOW, owner="me", lease=NOW - NOW, limit=1),
                ):
                    await refused(call)
                assert await store.get(kept.id) == kept
                assert store.peek(sample_session("lost-0").id) is None
            async with SqliteStore.open(path) as store:
                assert await store.get(kept.id) == kept
                await store.insert(sample_session("after"))
        asyncio.run(main())
    """
    await make(path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert SessionId("after") in await sessions_in(path)


# A file that cannot be used


async def refusal(path: Path) -> str:
    with pytest.raises(StoreFailed) as caught:
        await sessions_in(path)
    assert str(path) in caught.value.detail
    return caught.value.detail


async def test_a_new_file_is_private_and_leaves_no_stray(path: Path) -> None:
    Path(f"{path}.new").write_text("left by a crash")
    await make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_disk_that_is_full_leaves_no_half_made_store(tmp_path: Path) -> None:
    """On a small disk of its own, in a mount namespace of its own."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    probe = f"mount -t tmpfs none {tmp_path} && mount -o remount,size=4m {tmp_path}"
    if subprocess.run([*inside, probe], capture_output=True).returncode:
        pytest.skip("this user cannot mount and grow a disk in a namespace of its own")
    code = "import sys; from pathlib import Path; from agentcube.stores.sqlite_file import *; "
    code += "print(list(load(open_database(Path(sys.argv[1])), Path())))"
    attempt = f'"{sys.executable}" -c "{code}" "$0/store.sqlite3"'
    for kilobytes in range(0, 160, 20):
        script = f"mount -t tmpfs -o size={4 + kilobytes}k none $0 && {{ {attempt} 2> /dev/null > /dev/null; "
        script += f"mount -o remount,size=4m $0 && {attempt} && ls $0; }}"
        done = subprocess.run([*inside, script, str(tmp_path)], capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("[]\nstore.sqlite3\n", 0), (kilobytes, done.stderr)


async def test_a_newer_store_is_refused_and_kept(path: Path) -> None:
    await make(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    assert "newer AgentCube (store version 2" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_newer_record_is_refused_by_name_and_kept(path: Path) -> None:
    session = await make(path)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("""UPDATE sessions SET record = replace(record, '"v":1', '"v":2')""")
    before = path.read_bytes()
    assert f"session {session.id}" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_damaged_record_is_refused_by_name_and_kept(path: Path) -> None:
    session = await make(path)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE sessions SET record = substr(record, 1, 100)")
    before = path.read_bytes()
    assert f"session {session.id}" in await refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["empty", "text", "header", "middle", "index", "truncated"])
async def test_a_damaged_file_is_refused_with_a_remedy_and_kept(path: Path, damage: str) -> None:
    async with SqliteStore.open(path) as store:
        await asyncio.gather(*(store.insert(full_session()) for _ in range(50)))
    whole = path.read_bytes()
    assert len(whole) > 5 * 4096
    with closing(sqlite3.connect(path)) as other:
        index = other.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'").fetchone()[0] * 4096
    broken = {
        "empty": b"",
        "text": b"this is no database, whatever its name says\n" * 100,
        "header": b"\0" * 100 + whole[100:],
        "middle": whole[:4096] + b"\xff" * (len(whole) - 8192) + whole[-4096:],
        "index": whole[: index - 4096] + b"\xff" * 4096 + whole[index:],
        "truncated": whole[: len(whole) // 2],
    }[damage]
    path.write_bytes(broken)
    detail = await refusal(path)
    assert "damaged" in detail
    assert "restore it" in detail
    assert path.read_bytes() == broken


async def test_somebody_else_s_database_is_refused_and_kept(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE precious (thing)")
    before = path.read_bytes()
    assert "not an AgentCube store" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_missing_file_beside_its_journal_is_not_replaced(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"all that is left")
    assert "put the file back" in await refusal(path)
    assert not path.exists()


async def test_a_store_in_use_is_refused(path: Path) -> None:
    async with SqliteStore.open(path) as store:
        assert "in use" in await refusal(path)
        await store.insert(sample_session())


async def test_a_store_in_use_by_another_process_is_refused(path: Path) -> None:
    script = (
        "import sys, pathlib; from agentcube.stores.sqlite_file import open_database as open;"
        "open(pathlib.Path(sys.argv[1]))"
    )
    async with SqliteStore.open(path):
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "in use by another process" in done.stderr


async def test_a_path_that_cannot_be_a_file_is_refused(path: Path) -> None:
    await refusal(path / "missing" / "store.sqlite3")
    path.mkdir()
    assert "cannot be opened" in await refusal(path)


async def test_a_directory_that_cannot_be_written_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("root may write everywhere")
        assert "Permission denied" in await refusal(path)
    finally:
        path.parent.chmod(0o700)
