"""Streams of processes: nothing lost and nothing twice, and a slow reader that slows only itself."""

from __future__ import annotations

import base64
import concurrent.futures
import os
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .conftest import Keys, PicoD, _start, descendants, eventually, running

MIB = 1 << 20


@pytest.fixture(scope="module")
def picod(keys: Keys) -> Iterator[PicoD]:
    with ExitStack() as stack:
        yield _start(stack, keys, (), True, {})


def numbers(size: int) -> bytes:
    """What `seq` writes, up to `size` bytes: no part of it looks like another one."""
    text = "".join(f"{number}\n" for number in range(1, size // 4))
    return text[:size].encode()


class Collector:
    """A client that keeps what it got, by offset, and refuses a gap or a repetition."""

    def __init__(self) -> None:
        self.got = {"stdout": bytearray(), "stderr": bytearray()}
        self.last: dict[str, Any] = {}

    def take(self, event: dict[str, Any]) -> None:
        kept = self.got.get(event["event"])
        if kept is not None:
            assert event["offset"] == len(kept)
            kept += base64.b64decode(event["data_base64"])
            assert event["end"] == len(kept)
        self.last = event

    @property
    def positions(self) -> str:
        return "&".join(f"{name}={len(kept)}" for name, kept in self.got.items())


def test_a_client_that_loses_its_connections_gets_every_byte_once(picod: PicoD) -> None:
    chance = random.Random(7)
    script = "seq 1 400000 & seq 1 100000 >&2; wait"
    client, attachments = Collector(), 0
    target, body = "/api/processes?encoding=base64", {"shell": script, "grace": "60s"}
    with picod.streaming("POST", target, body, **{"Idempotency-Key": "cuts"}) as stream:
        id = stream.until("start")["id"]
    while client.last.get("event") != "exit":
        attachments += 1
        cut_after = chance.randrange(1, 12)
        target = f"/api/processes/{id}/output?encoding=base64&{client.positions}"
        with picod.streaming("GET", target) as stream:
            for number, event in enumerate(stream):
                client.take(event)
                if number == cut_after:
                    break
    assert attachments > 5
    assert bytes(client.got["stdout"]) == numbers(5 * MIB)[: len(client.got["stdout"])]
    assert client.last["stdout"] == len(client.got["stdout"]) == 2_688_895
    assert bytes(client.got["stderr"]) == numbers(MIB)[: len(client.got["stderr"])]
    assert client.last["stderr"] == len(client.got["stderr"]) == 588_895


def test_a_stream_with_a_grace_asks_for_confirmation_and_holds_the_program_meanwhile(picod: PicoD) -> None:
    with picod.streaming("POST", "/api/processes", {"shell": "exec yes", "grace": "60s"}) as stream:
        events = list(stream)
    more = events[-1]
    assert more["event"] == "more"
    assert 512 << 10 <= more["stdout"] <= (512 + 64) << 10
    id = events[0]["id"]

    full = eventually(lambda: (end := picod.process(id)["stdout"]["end"]) >= MIB and end)
    assert full <= MIB + 64 * 1024
    assert picod.process(id)["stdout"] == {"start": 0, "end": full}  # it stands still

    with picod.streaming("GET", f"/api/processes/{id}/output?stdout={more['stdout']}") as stream:
        first = stream.until("stdout")
        assert first["offset"] == more["stdout"]
        assert picod.process(id)["stdout"]["start"] == more["stdout"]
    assert picod.call("DELETE", f"/api/processes/{id}").status == 204


def test_a_client_that_does_not_come_back_within_the_grace_loses_its_process(picod: PicoD) -> None:
    unique = f"1004.{os.getpid()}"
    body = {"shell": f"sleep {unique}", "grace": "200ms"}
    with picod.streaming("POST", "/api/processes", body) as stream:
        id = stream.until("start")["id"]
    record = eventually(lambda: picod.process(id)["state"] == "exited" and picod.process(id))
    assert "did not come back within 200ms" in record["error"]
    assert (record["exit_code"], record["signal"], record["timed_out"]) == (137, "SIGKILL", False)
    assert running(unique) == []


def test_what_an_ended_process_wrote_waits_for_its_client(picod: PicoD) -> None:
    body = {"shell": "echo one; sleep 0.1; echo two", "grace": "60s"}
    with picod.streaming("POST", "/api/processes", body) as stream:
        id = stream.until("start")["id"]
    eventually(lambda: picod.process(id)["state"] == "exited")
    for _ in range(2):  # also when the end did not reach it the first time
        with picod.streaming("GET", f"/api/processes/{id}/output?stdout=4") as stream:
            events = list(stream)
        assert [event["event"] for event in events] == ["start", "stdout", "exit"]
        assert events[1]["data"] == "two\n"


def test_the_newest_reader_wins(picod: PicoD) -> None:
    body = {"shell": "echo a; read x; echo $x", "stdin": "open", "grace": "60s"}
    with picod.streaming("POST", "/api/processes", body) as older:
        id = older.until("start")["id"]
        older.until("stdout")
        with picod.streaming("GET", f"/api/processes/{id}/output?stdout=2") as newer:
            newer.until("start")
            assert [event["event"] for event in older] == ["replaced"]
            picod.call("POST", f"/api/processes/{id}/stdin", b"b\n")
            assert newer.until("stdout")["data"] == "b\n"
            assert newer.until("exit")["exit_code"] == 0


def test_looking_at_a_foreground_process_takes_nothing_away(picod: PicoD) -> None:
    body = {"shell": "echo a; read x; echo $x", "stdin": "open", "grace": "60s"}
    with picod.streaming("POST", "/api/processes", body) as stream:
        id = stream.until("start")["id"]
        stream.until("stdout")
        for _ in range(2):
            with picod.streaming("GET", f"/api/processes/{id}/output?follow=false") as look:
                events = list(look)
            assert [event["event"] for event in events] == ["start", "stdout", "more"]
            assert events[-1] == {"event": "more", "stdout": 2, "stderr": 0}
        picod.call("POST", f"/api/processes/{id}/stdin", b"b\n")
        assert stream.until("stdout")["data"] == "b\n"


def test_a_background_process_never_waits_and_its_oldest_output_goes(picod: PicoD) -> None:
    id = picod.start(shell="seq 1 400000")
    record = picod.call("GET", f"/api/processes/{id}/wait?timeout=60s").json()
    assert record["exit_code"] == 0
    assert record["stdout"] == {"start": 2_688_895 - MIB, "end": 2_688_895}

    client = Collector()
    with picod.streaming("GET", f"/api/processes/{id}/output?encoding=base64&stdout=1000") as stream:
        events = list(stream)
    assert events[1] == {"event": "gap", "stream": "stdout", "from": 1000, "to": record["stdout"]["start"]}
    client.got["stdout"] += bytes(record["stdout"]["start"])
    for event in events[2:]:
        client.take(event)
    assert client.last["event"] == "exit"
    assert bytes(client.got["stdout"][-MIB:]) == numbers(3 * MIB)[2_688_895 - MIB : 2_688_895]


def test_a_background_process_has_any_number_of_readers(picod: PicoD) -> None:
    id = picod.start(shell="read x; echo $x", stdin="open")
    with ExitStack() as stack:
        streams = [
            stack.enter_context(picod.streaming("GET", f"/api/processes/{id}/output")) for _ in range(5)
        ]
        for stream in streams:
            stream.until("start")
        picod.call("POST", f"/api/processes/{id}/stdin", b"all\n")
        for stream in streams:
            assert stream.until("stdout")["data"] == "all\n"
            assert stream.until("exit")["exit_code"] == 0


def test_a_slow_reader_slows_only_its_own_program(picod: PicoD) -> None:
    with picod.streaming("POST", "/api/processes?encoding=base64", {"shell": "seq 1 400000"}) as stream:
        id = stream.until("start")["id"]
        held = 0
        while (now := picod.process(id)["stdout"]["end"]) != held or not now:
            held = now
            picod.shell("sleep 0.05")  # others go on, and so would this one
        assert held < 2 * MIB  # what sockets and pipes hold, and PicoD's bound
        client = Collector()
        for event in stream:
            client.take(event)
    assert bytes(client.got["stdout"]) == numbers(3 * MIB)[:2_688_895]
    assert client.last["exit_code"] == 0


@pytest.mark.parametrize("background", [True, False])
def test_a_program_that_writes_a_gigabyte_costs_no_more_than_the_bounds(
    picod: PicoD, background: bool
) -> None:
    def peak() -> int:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{picod.pid}/status").read_text())
        assert match
        return int(match[1]) * 1024

    picod.shell("head -c 3000000 /dev/zero")
    before = peak()
    if background:
        id = picod.start(shell="head -c 1G /dev/zero")
        exit = eventually(lambda: (one := picod.process(id))["state"] == "exited" and one, within_s=300)
        assert (exit["exit_code"], exit["stdout"]["end"]) == (0, 1 << 30)
    else:
        with picod.streaming("POST", "/api/processes", {"shell": "yes | head -c 64M"}) as stream:
            exit = stream.until("exit")
        assert (exit["exit_code"], exit["stdout"]) == (0, 64 * MIB)
    assert peak() - before < 16 * MIB


def test_late_output_is_waited_for_only_a_moment_and_its_writer_lives_on(picod: PicoD) -> None:
    events = picod.events(shell="(while :; do echo more; sleep 0.01; done) & echo $! >&2")
    exit = events[-1]
    assert (exit["event"], exit["exit_code"]) == ("exit", 0)
    child = int(next(event["data"] for event in events if event["event"] == "stderr"))
    assert child in descendants(picod.pid)
    os.kill(child, 9)


def test_an_idempotency_key_starts_one_process_however_often_it_is_sent(picod: PicoD) -> None:
    body = {"shell": "echo ran >>runs; echo done", "grace": "60s"}

    def once(_: int) -> list[dict[str, Any]]:
        with picod.streaming("POST", "/api/processes", body, **{"Idempotency-Key": "one"}) as stream:
            return list(stream)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(once, range(8)))
    assert len({events[0]["id"] for events in answers}) == 1
    assert "exit" in {events[-1]["event"] for events in answers} <= {"exit", "replaced"}
    assert once(8)[1]["data"] == "done\n"
    assert (picod.workspace / "runs").read_text() == "ran\n"

    other = picod.call("POST", "/api/processes", {"shell": "true"}, {"Idempotency-Key": "one"})
    assert (other.status, other.json()["code"]) == (409, "idempotency_conflict")


def test_a_key_of_a_background_process_gives_the_same_one_again(picod: PicoD) -> None:
    key = {"Idempotency-Key": "two"}
    body = {"command": ["sleep", "1000"], "background": True}
    first = picod.call("POST", "/api/processes", body, key)
    second = picod.call("POST", "/api/processes", body, key)
    assert (first.status, second.status) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["location"] == f"processes/{first.json()['id']}"

    assert picod.call("DELETE", f"/api/processes/{first.json()['id']}").status == 204
    third = picod.call("POST", "/api/processes", body, key)  # forgotten with its process
    assert third.status == 201
    assert picod.call("DELETE", f"/api/processes/{third.json()['id']}").status == 204


def test_a_start_that_failed_leaves_its_key_free(picod: PicoD) -> None:
    key, body = {"Idempotency-Key": "three"}, {"command": ["true"], "working_dir": "later"}
    assert picod.call("POST", "/api/processes", body, key).status == 400
    (picod.workspace / "later").mkdir()
    assert picod.call("POST", "/api/processes", body, key).status == 200


def test_a_hundred_and_twenty_eight_run_at_once_and_no_more(picod: PicoD) -> None:
    with ExitStack() as stack:
        streams = []
        for number in range(128):
            body = {"shell": f"echo {number}; read x; echo $x; exit {number}", "stdin": "open"}
            streams.append(stack.enter_context(picod.streaming("POST", "/api/processes", body)))
        ids = [stream.until("start")["id"] for stream in streams]

        for target, body in (
            ("/api/processes", {"command": ["true"]}),
            ("/api/execute", {"command": ["true"]}),
        ):
            answer = picod.call("POST", target, body)
            assert (answer.status, answer.json()["code"]) == (429, "limit_exceeded")
            assert answer.headers["retry-after"] == "1"

        for number, (id, stream) in enumerate(zip(ids, streams, strict=True)):
            assert stream.until("stdout")["data"] == f"{number}\n"
            picod.call("POST", f"/api/processes/{id}/stdin", b"in %d\n" % number)
        for number, stream in enumerate(streams):
            assert stream.until("stdout")["data"] == f"in {number}\n"
            assert stream.until("exit")["exit_code"] == number
    assert picod.execute("true")["exit_code"] == 0


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("stdout=100", "beyond its end"),
        ("stderr=1", "beyond its end"),
        ("stdout=-1", "stdout must be a whole number"),
        ("stdout=x", "stdout must be a whole number"),
        ("stdout=" + "9" * 30, "stdout must be a whole number"),
        ("encoding=latin-1", "encoding must be"),
        ("follow=maybe", "follow must be"),
    ],
)
def test_bad_offsets_and_encodings_are_refused(picod: PicoD, query: str, says: str) -> None:
    id = picod.start(command=["echo", "a"])
    answer = picod.call("GET", f"/api/processes/{id}/output?{query}")
    assert (answer.status, answer.json()["code"]) == (400, "invalid")
    assert says in answer.json()["detail"]


def test_waiting_ends_with_the_time_or_the_process(picod: PicoD) -> None:
    id = picod.start(command=["sleep", "1000"])
    for timeout in ("0s", "50ms"):
        answer = picod.call("GET", f"/api/processes/{id}/wait?timeout={timeout}")
        assert answer.json()["state"] == "running"
    for timeout in ("-1s", "31m", "soon"):
        assert picod.call("GET", f"/api/processes/{id}/wait?timeout={timeout}").status == 400
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(picod.call, "GET", f"/api/processes/{id}/wait?timeout=10m")
        assert picod.call("POST", f"/api/processes/{id}/signal", {"signal": "TERM"}).status == 200
        assert waiting.result(60).json()["signal"] == "SIGTERM"
