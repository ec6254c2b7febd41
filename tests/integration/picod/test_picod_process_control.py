"""What is done to running processes: input, signals, terminals; and what is refused."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .conftest import Keys, PicoD, Stream, _start, descendants, eventually


@pytest.fixture(scope="module")
def picod(keys: Keys) -> Iterator[PicoD]:
    with ExitStack() as stack:
        yield _start(stack, keys, (), True, {})


def post(picod: PicoD, id: str, call: str, body: Any) -> Any:
    answer = picod.call("POST", f"/api/processes/{id}/{call}", body)
    assert answer.status == 200, answer.body
    return answer.json()


def refused(picod: PicoD, id: str, call: str, body: Any) -> tuple[int, str]:
    answer = picod.call("POST", f"/api/processes/{id}/{call}", body)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status, answer.json()["code"]


def read_until(stream: Stream, text: str) -> str:
    """The output up to `text`."""
    got = ""
    while text not in got:
        got += stream.until("stdout")["data"]
    return got


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_in_the_foreground(pid: int) -> bool:
    """Whether its process group is the one that its terminal's Ctrl-C goes to, and it has begun its program."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return fields[2] == fields[5] and Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


# Standard input


def test_input_is_written_and_closed(picod: PicoD) -> None:
    data = os.urandom(3 << 20)
    encoded = base64.b64encode(data).decode()
    events = picod.events(shell="wc -c; sha256sum </dev/null", input_base64=encoded)
    assert events[1]["data"].split()[0] == str(len(data))
    assert picod.events(command=["cat"], input="ä")[1]["data"] == "ä"
    assert picod.events(command=["true"], input="nobody reads this")[-1]["exit_code"] == 0


def test_standard_input_is_closed_unless_it_is_asked_for(picod: PicoD) -> None:
    assert picod.events(command=["cat"])[-1]["exit_code"] == 0
    for body in ({}, {"input": "x"}):
        id = picod.start(command=["sleep", "1000"], **body)
        assert picod.process(id)["stdin"] == "closed"
        assert refused(picod, id, "stdin", b"x") == (409, "stdin_closed")
        assert picod.call("DELETE", f"/api/processes/{id}").status == 204


def test_offsets_make_repetition_safe(picod: PicoD) -> None:
    id = picod.start(command=["cat"], stdin="open")
    assert post(picod, id, "stdin?offset=0", b"abc") == {"offset": 3}
    assert post(picod, id, "stdin?offset=0", b"abc") == {"offset": 3}
    assert post(picod, id, "stdin?offset=2", b"cd") == {"offset": 4}
    assert refused(picod, id, "stdin?offset=5", b"x") == (400, "invalid")
    assert post(picod, id, "stdin?close=true", b"e") == {"offset": 5}
    assert picod.process(id)["stdin"] == "closed"
    assert post(picod, id, "stdin?offset=4&close=true", b"e") == {"offset": 5}
    assert refused(picod, id, "stdin", b"x")[0] == 409
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        events = list(stream)
    assert "".join(event["data"] for event in events[1:-1]) == "abcde"
    assert refused(picod, id, "stdin", b"x") == (409, "process_ended")


def test_more_than_any_pipe_holds_goes_in(picod: PicoD) -> None:
    id, data = picod.start(command=["wc", "-c"], stdin="open"), bytes(10 << 20)
    assert post(picod, id, "stdin?close=true", data) == {"offset": len(data)}
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        assert int(stream.until("stdout")["data"]) == len(data)


def test_a_program_that_closed_its_input_is_told(picod: PicoD) -> None:
    id = picod.start(shell="exec <&-; echo closed; sleep 1000", stdin="open")
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        stream.until("stdout")
    assert refused(picod, id, "stdin", b"x") == (409, "stdin_closed")
    assert picod.process(id)["stdin"] == "closed"
    assert picod.call("DELETE", f"/api/processes/{id}").status == 204


@pytest.mark.parametrize("query", ["offset=-1", "offset=x", "close=maybe"])
def test_bad_input_calls_are_refused(picod: PicoD, query: str) -> None:
    id = picod.start(command=["cat"], stdin="open")
    assert refused(picod, id, f"stdin?{query}", b"x") == (400, "invalid")
    assert picod.call("DELETE", f"/api/processes/{id}").status == 204


# Signals


@pytest.mark.parametrize("given", ["SIGUSR1", "USR1", "usr1", 10])
def test_a_signal_reaches_the_group(picod: PicoD, given: Any) -> None:
    script = "trap 'echo child; exit' USR1; echo up; while :; do sleep 0.01; done"
    id = picod.start(shell=f"({script}) & trap 'wait; echo parent; exit 5' USR1; echo up; wait")
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        got = ""
        while got.count("up") < 2:
            got += stream.until("stdout")["data"]
        assert post(picod, id, "signal", {"signal": given})["id"] == id
        events = list(stream)
    assert "".join(e["data"] for e in events[:-1] if e["event"] == "stdout") == "child\nparent\n"
    assert events[-1]["exit_code"] == 5


def test_with_tree_it_reaches_those_who_left_the_group(picod: PicoD) -> None:
    id = picod.start(shell="setsid sleep 1000 & wait; echo over; sleep 1000")
    program = picod.process(id)["pid"]
    (child,) = eventually(lambda: descendants(program))
    eventually(lambda: os.getpgid(child) != program)
    post(picod, id, "signal", {"signal": "CONT"})
    assert is_running(program)
    post(picod, id, "signal", {"signal": "TERM", "tree": True})
    eventually(lambda: not (is_running(program) or is_running(child)))
    assert picod.call("GET", f"/api/processes/{id}/wait").json()["signal"] == "SIGTERM"


def test_stopping_and_going_on(picod: PicoD) -> None:
    id = picod.start(shell="sleep 0.01; echo a")
    post(picod, id, "signal", {"signal": "STOP"})
    assert picod.call("GET", f"/api/processes/{id}/wait?timeout=100ms").json()["state"] == "running"
    post(picod, id, "signal", {"signal": "SIGCONT"})
    assert picod.call("GET", f"/api/processes/{id}/wait").json()["exit_code"] == 0


@pytest.mark.parametrize("given", ["SIGNOPE", "", 0, -9, 65, 9.5, True, None, [], "SIG"])
def test_bad_signals_are_refused(picod: PicoD, given: Any) -> None:
    id = picod.start(command=["sleep", "1000"])
    assert refused(picod, id, "signal", {"signal": given}) == (400, "invalid")
    assert refused(picod, id, "signal", {"signal": 9, "to": "all"}) == (400, "invalid")
    assert picod.process(id)["state"] == "running"
    assert picod.call("DELETE", f"/api/processes/{id}").status == 204


def test_the_dead_take_no_signals(picod: PicoD) -> None:
    id = picod.start(command=["true"])
    picod.call("GET", f"/api/processes/{id}/wait")
    assert refused(picod, id, "signal", {"signal": 9}) == (409, "process_ended")
    assert refused(picod, id, "resize", {"cols": 1, "rows": 1}) == (409, "not_a_terminal")


# Terminals


def test_a_terminal_is_one(picod: PicoD) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM >/dev/tty; echo err >&2"
    events = picod.events(shell=script, pty={"cols": 132, "rows": 43})
    assert {event["event"] for event in events} == {"start", "stdout", "exit"}
    assert "".join(e["data"] for e in events[1:-1]) == "43 132\r\nxterm-256color\r\nerr\r\n"
    assert events[-1]["stderr"] == 0
    events = picod.events(shell="echo $TERM; stty size", pty={}, env={"TERM": "vt100"})
    assert "".join(e["data"] for e in events[1:-1]) == "vt100\r\n24 80\r\n"


def test_resizing_tells_the_program(picod: PicoD) -> None:
    script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.01; done"
    id = picod.start(shell=script, pty={"cols": 80, "rows": 24})
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        read_until(stream, "up\r\n")
        assert post(picod, id, "resize", {"cols": 100, "rows": 50})["pty"] == {"cols": 100, "rows": 50}
        assert post(picod, id, "resize", {"rows": 40})["pty"] == {"cols": 100, "rows": 40}
        assert post(picod, id, "resize", {"rows": 50})["pty"] == {"cols": 100, "rows": 50}
        assert read_until(stream, "\r\n") == "50 100\r\n"
    assert picod.call("DELETE", f"/api/processes/{id}").status == 204
    id = picod.start(command=["true"], pty={})
    picod.call("GET", f"/api/processes/{id}/wait")
    assert refused(picod, id, "resize", {"cols": 1, "rows": 1}) == (409, "process_ended")


def test_ctrl_c_interrupts_what_is_in_the_foreground_and_the_shell_lives_on(picod: PicoD) -> None:
    env = {"PS1": "ready> ", "HOME": "/"}
    body = {"command": ["bash", "--norc", "--noprofile", "-i"], "pty": {}, "env": env}
    with picod.streaming("POST", "/api/processes", body) as stream:
        start = stream.until("start")
        id, program = start["id"], start["pid"]
        read_until(stream, "ready> ")
        post(picod, id, "stdin", b"sleep 1000\n")
        (child,) = eventually(lambda: descendants(program))
        eventually(lambda: is_in_the_foreground(child))
        post(picod, id, "stdin", b"\x03")
        eventually(lambda: not is_running(child))
        post(picod, id, "stdin", b"echo al''ive; exit 7\n")
        read_until(stream, "alive\r\n")
        assert stream.until("exit")["exit_code"] == 7


@pytest.mark.parametrize("typed", [b"whole line\n", b"half a line", b""])
def test_closing_a_terminals_input_is_an_end_of_file(picod: PicoD, typed: bytes) -> None:
    id = picod.start(shell="cat >typed; echo over; sleep 1000", pty={})
    with picod.streaming("GET", f"/api/processes/{id}/output") as stream:
        assert post(picod, id, "stdin?close=true", typed) == {"offset": len(typed)}
        read_until(stream, "over")
    assert (picod.workspace / "typed").read_bytes() == typed
    assert refused(picod, id, "stdin", b"x") == (409, "stdin_closed")
    assert picod.call("DELETE", f"/api/processes/{id}").status == 204


def test_what_a_terminal_leaves_behind_is_hung_up(picod: PicoD) -> None:
    events = picod.events(shell="sleep 1000 & echo $!", pty={})
    assert events[-1]["exit_code"] == 0
    child = int("".join(e["data"] for e in events[1:-1]))
    eventually(lambda: not is_running(child))


def test_a_terminal_that_is_fed_ends_its_input(picod: PicoD) -> None:
    events = picod.events(command=["cat"], pty={}, input="a\n")
    assert "".join(e["data"] for e in events[1:-1]) == "a\r\na\r\n"  # the echo, and the program


# Refusals


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "give command"),
        ({"command": ["a"], "shell": "a"}, "give command"),
        ({"command": []}, "non-empty"),
        ({"command": "ls"}, "list of texts"),
        ({"command": [1]}, "texts"),
        ({"command": [""]}, "empty"),
        ({"command": ["a\0"]}, "NUL"),
        ({"command": ["\ud800"]}, "surrogate"),
        ({"shell": 1}, "shell"),
        ({"shell": "a\0"}, "shell"),
        ({"command": ["ls"], "working_dir": "absent"}, "absent"),
        ({"command": ["ls"], "working_dir": "/etc/passwd"}, "Not a directory"),
        ({"command": ["ls"], "working_dir": 1}, "working_dir"),
        ({"command": ["ls"], "env": []}, "env"),
        ({"command": ["ls"], "env": {"": "x"}}, "env"),
        ({"command": ["ls"], "env": {"A=": "x"}}, "env"),
        ({"command": ["ls"], "env": {"A": 1}}, "env"),
        ({"command": ["ls"], "user": "root"}, "sandbox"),
        ({"command": ["ls"], "user": 0}, "sandbox") if os.geteuid() else ({"command": []}, "non-empty"),
        ({"command": ["ls"], "stdin": "maybe"}, "stdin"),
        ({"command": ["ls"], "stdin": "open", "input": "x"}, "input"),
        ({"command": ["ls"], "stdin": "closed", "pty": {}}, "open"),
        ({"command": ["ls"], "input": "x", "input_base64": "eA=="}, "not both"),
        ({"command": ["ls"], "input": 1}, "input"),
        ({"command": ["ls"], "input_base64": "%"}, "base64"),
        ({"command": ["ls"], "pty": {"cols": 0, "rows": 24}}, "1 to 4096"),
        ({"command": ["ls"], "pty": {"cols": 80, "rows": 4097}}, "1 to 4096"),
        ({"command": ["ls"], "pty": {"cols": "80"}}, "1 to 4096"),
        ({"command": ["ls"], "pty": {"cols": True}}, "1 to 4096"),
        ({"command": ["ls"], "pty": {"columns": 80}}, "columns"),
        ({"command": ["ls"], "pty": True}, "size"),
        ({"command": ["ls"], "timeout": "0s"}, "timeout"),
        ({"command": ["ls"], "timeout": "25h"}, "timeout"),
        ({"command": ["ls"], "timeout": 5}, "timeout"),
        ({"command": ["ls"], "grace": "61m"}, "grace"),
        ({"command": ["ls"], "grace": "1s", "background": True}, "grace"),
        ({"command": ["ls"], "background": "yes"}, "background"),
        ({"command": ["ls"], "colour": "blue"}, "colour"),
    ],
)
def test_bad_orders_are_refused(picod: PicoD, body: dict[str, Any], says: str) -> None:
    answer = picod.call("POST", "/api/processes", body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid")
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256])
def test_bad_idempotency_keys_are_refused(picod: PicoD, key: str) -> None:
    answer = picod.call("POST", "/api/processes", {"shell": "true"}, {"Idempotency-Key": key})
    assert (answer.status, answer.json()["code"]) == (400, "invalid")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=p-1"])
def test_bad_lists_are_refused(picod: PicoD, query: str) -> None:
    assert picod.call("GET", f"/api/processes?{query}").status == 400


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("id", ["p-0000000000000000", "p-%00", "x%2Fy", "%C3%A4"])
def test_unknown_processes_are_not_found(picod: PicoD, method: str, id: str) -> None:
    calls = {"GET": ("", "/output", "/wait"), "DELETE": ("",)}[method]
    for call in calls:
        answer = picod.call(method, f"/api/processes/{id}{call}")
        assert (answer.status, answer.json()["code"]) == (404, "process_not_found")
    for call in ("stdin", "signal", "resize"):
        assert refused(picod, id, call, {}) == (404, "process_not_found")


def test_a_long_command_is_remembered_in_short(picod: PicoD) -> None:
    record = picod.process(picod.start(command=["true", "x" * 100_000, "y"]))
    assert record["command"] == ["true", "x" * 4091 + "…"]
    record = picod.process(picod.start(shell="true " + "x" * 100_000))
    assert record["shell"] == "true " + "x" * 4091 + "…"


def test_a_user_who_is_named_is_the_one_there_is(picod: PicoD) -> None:
    uid = 1000 if os.geteuid() == 0 else os.geteuid()
    for user in ("sandbox", uid, str(uid)):
        assert picod.events(command=["id", "-u"], user=user)[1]["data"] == f"{uid}\n"
