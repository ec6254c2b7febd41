"""/api/processes: starting, streaming, the ends of programs, and what is remembered of them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .conftest import Keys, PicoD, StartPicod, _start, descendants, eventually, running


@pytest.fixture(scope="module")
def picod(keys: Keys) -> Iterator[PicoD]:
    with ExitStack() as stack:
        yield _start(stack, keys, (), True, {})


@pytest.fixture
def unique() -> str:
    """Seconds to sleep that nobody else on this machine sleeps."""
    return f"1000.{os.getpid()}"


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def text(events: list[dict[str, Any]], stream: str) -> str:
    return "".join(event["data"] for event in events if event["event"] == stream)


def ended(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert events[-1]["event"] == "exit", events[-1]
    return events[-1]


def test_a_foreground_process_streams_and_ends(picod: PicoD) -> None:
    events = picod.events(shell="echo out; echo err >&2; exit 3")

    assert events[0]["event"] == "start"
    assert events[0]["id"].startswith("p-")
    assert text(events, "stdout") == "out\n"
    assert text(events, "stderr") == "err\n"
    exit = ended(events)
    assert (exit["exit_code"], exit["signal"], exit["timed_out"]) == (3, None, False)
    assert (exit["stdout"], exit["stderr"]) == (4, 4)
    assert picod.process(events[0]["id"])["state"] == "exited"


def test_output_comes_when_it_is_written(picod: PicoD) -> None:
    with picod.streaming(
        "POST", "/api/processes", {"shell": "echo one; read x; echo $x", "stdin": "open"}
    ) as s:
        id = s.until("start")["id"]
        assert s.until("stdout")["data"] == "one\n"
        assert picod.call("POST", f"/api/processes/{id}/stdin", b"two\n").json() == {"offset": 4}
        assert s.until("stdout")["data"] == "two\n"
        assert s.until("exit")["exit_code"] == 0


def test_server_sent_events_say_the_same(picod: PicoD) -> None:
    answer = picod.call("POST", "/api/processes", {"command": ["echo", "a"]}, {"Accept": "text/event-stream"})
    blocks = [block.split(b"\n") for block in answer.body.split(b"\n\n") if block]
    assert [lines[0] for lines in blocks] == [b"event: start", b"event: stdout", b"event: exit"]
    assert [json.loads(lines[1][6:])["event"] for lines in blocks] == ["start", "stdout", "exit"]


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [(["absent"], 127, "absent: command not found"), (["/etc/passwd"], 126, "cannot execute")],
)
def test_what_cannot_be_executed_says_why(picod: PicoD, command: list[str], code: int, reason: str) -> None:
    events = picod.events(command=command)
    assert ended(events)["exit_code"] == code
    assert reason in ended(events)["error"]
    assert reason in text(events, "stderr")
    assert ended(events)["stderr"] == len(text(events, "stderr"))


@pytest.mark.parametrize(
    ("script", "code", "name"), [("kill -9 $$", 137, "SIGKILL"), ("kill $$", 143, "SIGTERM")]
)
def test_the_signal_that_ended_it_is_told(picod: PicoD, script: str, code: int, name: str) -> None:
    exit = ended(picod.events(shell=script))
    assert (exit["exit_code"], exit["signal"]) == (code, name)


def test_a_timeout_kills_the_whole_tree(picod: PicoD, unique: str) -> None:
    script = f"(sleep {unique} & setsid sleep {unique} & wait) & wait"
    exit = ended(picod.events(shell=script, timeout="300ms"))
    assert (exit["exit_code"], exit["signal"], exit["timed_out"]) == (124, "SIGKILL", True)
    assert "300ms" in exit["error"]
    assert running(unique) == []


def test_a_client_that_goes_away_takes_its_process_along(picod: PicoD, unique: str) -> None:
    body = {"shell": f"sleep {unique} & sleep {unique}"}
    with picod.streaming("POST", "/api/processes", body) as stream:
        id = stream.until("start")["id"]
    record = eventually(lambda: picod.process(id)["state"] == "exited" and picod.process(id))
    assert "its client went away" in record["error"]
    assert (record["exit_code"], record["signal"]) == (137, "SIGKILL")
    assert running(unique) == []


def test_a_background_process_outlives_its_call(picod: PicoD) -> None:
    id = picod.start(shell="echo a; read x; echo $x >&2", stdin="open")
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        assert stream.until("stdout")["data"] == "a\n"
    assert picod.process(id)["state"] == "running"
    picod.call("POST", f"/api/processes/{id}/stdin", b"b\n")
    answer = picod.call("GET", f"/api/processes/{id}/wait")
    assert answer.json()["state"] == "exited"
    with picod.streaming("GET", f"/api/processes/{id}/output?stdout=1") as stream:
        events = list(stream)
    assert (text(events, "stdout"), text(events, "stderr")) == ("\n", "b\n")


def test_exact_bytes_and_characters_that_are_never_cut(picod: PicoD) -> None:
    data = "ä€😀".encode() + b"\xff\x00"
    script = f"import os, sys\nfor b in {data!r}: os.write(1, bytes([b])); sys.stdin.read(1)"
    command = ["python3", "-c", script]
    fed = "x" * len(data)

    events = picod.events(command=command, input=fed)
    assert text(events, "stdout") == "ä€😀\ufffd\x00"
    assert ended(events)["stdout"] == len(data)
    offset = 0
    for event in events[1:-1]:
        assert event["offset"] == offset
        offset = event["end"]

    with picod.streaming(
        "POST", "/api/processes?encoding=base64", {"command": command, "input": fed}
    ) as stream:
        pieces = [base64.b64decode(event["data_base64"]) for event in stream if event["event"] == "stdout"]
    assert b"".join(pieces) == data


def test_deleting_kills_the_tree_and_forgets(picod: PicoD, unique: str) -> None:
    id = picod.start(shell=f"sleep {unique} & sleep {unique}")
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        stream.until("start")
        assert picod.call("DELETE", f"/api/processes/{id}").status == 204
        assert stream.until("exit")["signal"] == "SIGKILL"
    assert running(unique) == []
    answer = picod.call("DELETE", f"/api/processes/{id}")
    assert (answer.status, answer.json()["code"]) == (404, "process_not_found")


def test_the_document_says_all(picod: PicoD) -> None:
    id = picod.start(command=["cat"], stdin="open", working_dir="/tmp")
    record = picod.process(id)
    assert os.path.isdir(f"/proc/{record['pid']}")
    assert record["command"] == ["cat"]
    assert record["shell"] is None
    assert record["working_dir"] == "/tmp"
    assert (record["state"], record["stdin"], record["pty"]) == ("running", "open", None)
    assert record["stdout"] == {"start": 0, "end": 0}
    picod.call("POST", f"/api/processes/{id}/stdin?close=true", b"")
    record = picod.call("GET", f"/api/processes/{id}/wait").json()
    assert (record["state"], record["stdin"], record["exit_code"]) == ("exited", "closed", 0)
    assert record["ended_at"] > record["started_at"]


def test_the_list_goes_on_from_a_cursor(picod: PicoD) -> None:
    ids = [picod.start(command=["true"]) for _ in range(5)]
    found, cursor = [], "0"
    while cursor:
        page = picod.call("GET", f"/api/processes?limit=2&cursor={cursor}").json()
        assert len(page["processes"]) <= 2
        found += [one["id"] for one in page["processes"]]
        cursor = page.get("next_cursor", "")
    assert [id for id in found if id in ids] == ids
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_a_user_who_kills_or_stops_the_nursery_gains_nothing(start_picod: StartPicod, number: str) -> None:
    picod = start_picod(single_uid=True)

    def nurseries() -> list[int]:
        children = set(descendants(picod.pid, with_picod=True)) - set(descendants(picod.pid))
        return [pid for pid in children if comm(pid) == "picod-nursery"]

    ids = [picod.start(command=["sleep", "1000"]) for _ in range(6)]
    (first,) = eventually(nurseries)
    picod.shell(f"kill -{number} {first}")
    ids += [picod.start(command=["sleep", "1000"]) for _ in range(6)]
    assert all(picod.process(id)["state"] == "running" for id in ids)
    eventually(lambda: first not in nurseries() and nurseries())
    for id in ids:
        assert picod.call("DELETE", f"/api/processes/{id}").status == 204
    assert descendants(picod.pid) == []


def test_a_program_that_kills_its_guard_is_told_of_and_leaves_nothing(start_picod: StartPicod) -> None:
    picod = start_picod(single_uid=True)
    exit = ended(picod.events(shell="sleep 1000 & kill -9 $PPID; sleep 1000"))
    assert (exit["exit_code"], exit["signal"], exit["timed_out"]) == (137, "SIGKILL", False)
    assert "killed its own guard" in exit["error"]
    assert descendants(picod.pid) == []


def test_one_that_takes_more_memory_than_there_is_is_told_why_it_died(start_picod: StartPicod) -> None:
    limits = {"mode": "rlimit", "memory_bytes": 64 << 20, "pids_max": 0}
    picod = start_picod(limits=limits)
    # Shared memory is what RLIMIT_DATA does not hold back.
    script = "import mmap, time\nm = mmap.mmap(-1, 150 << 20)\nfor _ in range(150): m.write(bytes(1 << 20))\n"
    script += "time.sleep(1000)"
    id = picod.start(command=["python3", "-c", script])
    record = picod.call("GET", f"/api/processes/{id}/wait?timeout=60s").json()
    assert (record["exit_code"], record["signal"]) == (137, "SIGKILL")
    assert "over the sandbox's memory limit" in record["error"]
