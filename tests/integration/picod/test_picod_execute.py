"""/api/execute: what a caller sees, and what is left of it afterwards."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from .conftest import ROOT, PicoD, StartPicod, descendants, eventually, open_files


def test_output_and_exit_code_come_back(picod_both: PicoD) -> None:
    result = picod_both.shell("echo out; echo err >&2; exit 3")

    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\n", "err\n", 3)
    assert 0 <= result["duration"] < 60
    assert result["start_time"].endswith("Z")
    assert result["start_time"] < result["end_time"]
    assert result["stdout_truncated"] is False
    assert "signal" not in result


def test_it_runs_in_the_workspace_as_the_user(picod: PicoD) -> None:
    result = picod.shell("pwd; id -u; id -g; id -G; umask")

    pwd, uid, gid, groups, umask = result["stdout"].split("\n")[:5]
    assert pwd == str(picod.workspace)
    expected = "1000" if os.geteuid() == 0 else str(os.geteuid())
    assert uid == expected
    if os.geteuid() == 0:
        assert (gid, groups) == ("1000", "1000")
    assert umask == "0022"


def test_only_stdio_is_inherited_and_signals_are_default(picod_both: PicoD) -> None:
    listing = picod_both.execute("ls", "/proc/self/fd")["stdout"].split()
    assert listing == ["0", "1", "2", "3"]  # 3 is ls's own, on the directory

    status = picod_both.execute("cat", "/proc/self/status")["stdout"]
    fields = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    assert int(fields["SigIgn"], 16) & (1 << 31) - 1 == 0  # glibc's posix_spawn ignores its own 32 and 33
    assert int(fields["SigBlk"], 16) == 0


def test_each_call_is_a_fresh_process_in_a_session_of_its_own(picod: PicoD) -> None:
    assert picod.shell("export A=1; cd /; echo $A")["stdout"] == "1\n"
    assert picod.shell("echo -$A-; pwd")["stdout"] == f"--\n{picod.workspace}\n"
    pid, session = picod.shell("echo $$; cut -d' ' -f6 /proc/$$/stat")["stdout"].split()
    assert pid == session


def test_environment_is_the_templates_then_the_bindings_then_the_calls(start_picod) -> None:
    picod = start_picod(bound=False, env={"PATH": "/usr/bin:/bin", "A": "t", "B": "t", "C": "t"})
    picod.bind(env={"B": "b", "C": "b"})

    result = picod.shell('echo "$A$B$C"; env | wc -l', env={"C": "c"})

    assert result["stdout"].startswith("tbc\n")
    assert "LD_PRELOAD" not in picod.execute("env")["stdout"]
    assert "PYTHONPATH" not in picod.execute("env")["stdout"]  # nothing of PicoD's own


@pytest.mark.parametrize("where", ["sub", "sub/../sub", "ABSOLUTE"])
def test_working_dir_is_relative_to_the_workspace_or_absolute(picod: PicoD, where: str) -> None:
    picod.shell("mkdir sub")
    where = "/usr/bin" if where == "ABSOLUTE" else where

    result = picod.execute("pwd", working_dir=where)

    assert result["stdout"].strip() == ("/usr/bin" if where == "/usr/bin" else str(picod.workspace / "sub"))


@pytest.mark.parametrize("where", ["absent", "file", "/root/secret"])
def test_a_working_dir_that_cannot_be_entered_is_a_clear_400(picod: PicoD, where: str) -> None:
    picod.write("file", b"")

    answer = picod.call("POST", "/api/execute", {"command": ["true"], "working_dir": where})

    assert answer.status == 400
    assert answer.json()["code"] == "invalid"
    assert where in answer.json()["detail"]


def test_an_unknown_program_is_127_and_one_that_cannot_run_126(picod_both: PicoD) -> None:
    result = picod_both.execute("no-such-program-here")
    assert result["exit_code"] == 127
    assert "no-such-program-here: command not found" in result["stderr"]
    assert picod_both.execute("/absent/program")["exit_code"] == 127

    picod_both.write("data.txt", b"x")
    result = picod_both.execute("./data.txt")
    assert result["exit_code"] == 126
    assert "Permission denied" in result["stderr"]
    assert picod_both.execute("/usr")["exit_code"] == 126


def test_scripts_run_with_and_without_an_interpreter_line(picod: PicoD) -> None:
    picod.write("a.sh", b"#!/bin/sh\necho a $1\n", mode="0755")
    picod.write("b.sh", b"echo b $1\n", mode="0755")

    assert picod.execute("./a.sh", "1")["stdout"] == "a 1\n"
    assert picod.execute("./b.sh", "2")["stdout"] == "b 2\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_death_by_signal_is_128_plus_n_and_named(picod: PicoD, number: signal.Signals) -> None:
    result = picod.shell(f"kill -{int(number)} $$")

    assert result["exit_code"] == 128 + number
    assert result["signal"] == number.name


def test_stdin_as_text_as_bytes_and_none(picod: PicoD) -> None:
    assert picod.execute("cat", stdin="héllo")["stdout"] == "héllo"
    raw = bytes(range(256)) * 1024  # more than a pipe holds
    encoded = base64.b64encode(raw).decode()
    result = picod.execute("cat", stdin_base64=encoded, encoding="base64")
    assert base64.b64decode(result["stdout_base64"]) == raw
    assert result["stderr_base64"] == ""
    assert "stdout" not in result
    assert picod.execute("cat")["stdout"] == ""
    assert picod.execute("true", stdin="x" * 1_000_000)["exit_code"] == 0  # who does not read is fine


def test_output_that_is_no_utf_8_is_replaced_not_lost(picod: PicoD) -> None:
    assert picod.shell(r"printf 'a\377b'")["stdout"] == "a\ufffdb"


def test_output_is_bounded_and_the_program_still_ends(picod: PicoD) -> None:
    result = picod.shell("head -c 20000000 /dev/zero | tr '\\0' x; echo done >&2")

    assert len(result["stdout"]) == 8 * 1024 * 1024
    assert result["stdout_truncated"] is True
    assert (result["stderr"], result["stderr_truncated"], result["exit_code"]) == ("done\n", False, 0)


# The tree


TREE = """
sleep 1001 &
setsid sleep 1002 &
sh -c 'setsid sh -c "sleep 1003 & sleep 1004 &" &'
(trap '' TERM HUP INT; sleep 1005) &
sleep 1006
"""


def test_a_timeout_is_124_and_the_whole_tree_is_dead(picod_both: PicoD) -> None:
    result = picod_both.shell(TREE, timeout="400ms")

    assert result["exit_code"] == 124
    assert result["stderr"] == "command timed out after 400ms; all its processes were killed\n"
    assert result["duration"] >= 0.4
    assert descendants(picod_both.pid) == []


HOPPER = """
import os, time
if os.fork():
    time.sleep(60)
end = time.time() + 20
while time.time() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
"""


def test_a_chain_of_processes_that_fork_and_exit_does_not_escape(picod_both: PicoD) -> None:
    result = picod_both.execute("python3", "-S", "-c", HOPPER, timeout="1s")

    assert result["exit_code"] == 124
    assert "all its processes were killed" in result["stderr"]
    assert descendants(picod_both.pid) == []


def test_output_before_a_timeout_is_kept(picod: PicoD) -> None:
    result = picod.shell("echo early; sleep 60", timeout="300ms")

    assert result["stdout"] == "early\n"
    assert result["exit_code"] == 124


def test_background_processes_of_a_command_that_ended_live_on(picod_both: PicoD) -> None:
    result = picod_both.shell("(while :; do echo tick; sleep 0.01; done) & echo $!", timeout="20s")

    assert result["exit_code"] == 0
    (pid,) = {int(line) for line in result["stdout"].split() if line.isdigit()}
    assert result["duration"] < 10  # it does not wait for the pipe that the loop holds
    alive = picod_both.shell(f"kill -0 {pid} && cut -d' ' -f4 /proc/{pid}/stat")
    assert alive["exit_code"] == 0
    assert int(alive["stdout"]) == picod_both.pid  # adopted, and it gets no SIGPIPE
    picod_both.shell(f"kill {pid}")
    eventually(lambda: descendants(picod_both.pid) == [])


def test_late_output_of_a_process_substitution_is_waited_for(picod: PicoD) -> None:
    result = picod.execute("bash", "-c", "echo late > >(sleep 0.02; cat)")

    assert result["stdout"] == "late\n"


def test_a_client_that_goes_away_takes_its_command_along(picod_both: PicoD) -> None:
    body = json.dumps({"command": ["sh", "-c", TREE]}).encode()
    connection = picod_both.raw()
    head = f"POST /api/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod_both.token}\r\n"
    connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    eventually(lambda: len(descendants(picod_both.pid)) >= 7)

    connection.close()

    eventually(lambda: descendants(picod_both.pid) == [])
    assert picod_both.shell("echo still here")["stdout"] == "still here\n"


def test_a_client_that_closes_only_its_side_gets_the_answer(picod: PicoD) -> None:
    body = json.dumps({"command": ["sh", "-c", "sleep 0.2; echo half"]}).encode()
    connection = picod.raw()
    head = f"POST /api/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {picod.token}\r\n"
    connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    connection.shutdown(socket.SHUT_WR)

    data = b"".join(iter(lambda: connection.recv(65536), b""))

    assert b'"stdout": "half\\n"' in data


def test_500_exit_codes_are_true_20_at_a_time(picod_both: PicoD) -> None:
    def one(number: int) -> tuple[int, int]:
        return number % 256, picod_both.shell(f"(exit 9) & (exit 8) & exit {number % 256}")["exit_code"]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(500)))

    assert [got for _, got in results] == [wanted for wanted, _ in results]
    eventually(lambda: descendants(picod_both.pid) == [])
    if ROOT:
        eventually(lambda: len(open_files(picod_both.pid)) < 40)


def test_too_many_at_once_is_429(picod: PicoD) -> None:
    with concurrent.futures.ThreadPoolExecutor(140) as pool:
        calls = [
            pool.submit(picod.call, "POST", "/api/execute", {"command": ["sleep", "60"], "timeout": "8s"})
            for _ in range(140)
        ]
        refused = [call.result() for call in concurrent.futures.as_completed(calls)]

    answers = [answer for answer in refused if answer.status == 429]
    assert len(answers) == 140 - 128
    assert answers[0].json()["code"] == "limit_exceeded"
    assert answers[0].json()["retryable"] is True
    assert answers[0].headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "command"),
        ({"command": []}, "command"),
        ({"command": "echo hi"}, "command"),
        ({"command": [1]}, "command"),
        ({"command": [""]}, "command"),
        ({"command": ["a\x00b"]}, "NUL"),
        ({"command": ["\ud800"]}, "surrogate"),
        ({"command": ["true"], "timeout": "30"}, "30"),
        ({"command": ["true"], "timeout": 30}, "duration"),
        ({"command": ["true"], "timeout": "0s"}, "more than 0"),
        ({"command": ["true"], "timeout": "-1s"}, "negative"),
        ({"command": ["true"], "timeout": "25h"}, "24h"),
        ({"command": ["true"], "env": []}, "env"),
        ({"command": ["true"], "env": {"A=B": "x"}}, "A=B"),
        ({"command": ["true"], "env": {"A": 1}}, "'A'"),
        ({"command": ["true"], "working_dir": 1}, "working_dir"),
        ({"command": ["true"], "stdin": "a", "stdin_base64": "YQ=="}, "not both"),
        ({"command": ["true"], "stdin": 1}, "stdin"),
        ({"command": ["true"], "stdin_base64": "!"}, "stdin_base64"),
        ({"command": ["true"], "encoding": "hex"}, "encoding"),
        ({"command": ["true"], "timout": "1s"}, "timout"),
        ([1], "object"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_bad_input_is_a_400_that_names_it(picod: PicoD, body: object, named: str) -> None:
    answer = picod.call("POST", "/api/execute", body)

    problem = answer.json()
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in problem["detail"]
    assert problem["error"] == problem["detail"]
    assert problem["type"] == "https://agentcube.dev/problems/invalid"


def test_arguments_over_the_kernels_limit_are_126(picod: PicoD) -> None:
    result = picod.execute("echo", "x" * 200_000)

    assert result["exit_code"] == 126
    assert "Argument list too long" in result["stderr"]


def waiting_guards(picod: PicoD) -> list[str]:
    """Those that wait for a program, with how many descriptors they hold; what is at work does not count."""
    below = set(descendants(picod.pid, with_picod=True)) - set(descendants(picod.pid))
    found = []
    for pid in below:
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "picod-spare\n":
                found.append(f"{pid} {len(open_files(pid)) if ROOT else ''}")
        except FileNotFoundError:
            continue  # it went away since it was listed
    return found


def test_a_guard_whose_program_left_nothing_takes_the_next_one(picod_both: PicoD) -> None:
    picod_both.execute("true")
    before = eventually(lambda: waiting_guards(picod_both))
    for _ in range(20):
        assert picod_both.shell("exit 3", stdin="x")["exit_code"] == 3
    assert eventually(lambda: waiting_guards(picod_both)) == before  # the same one, holding nothing more
    assert len(before) == 1

    picod_both.shell("sleep 1000 >/dev/null 2>&1 &")
    eventually(lambda: waiting_guards(picod_both) != before)  # this one had to go
    assert picod_both.execute("absent")["exit_code"] == 127
    assert picod_both.shell("exit 4", working_dir="/")["exit_code"] == 4


def test_a_program_too_long_to_hand_over_runs_all_the_same(picod: PicoD) -> None:
    result = picod.shell("echo ${#A}", env={"A": "x" * 100_000})
    assert result["stdout"] == "100000\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user other than PicoD's")
def test_a_used_guard_still_enters_directories_as_the_user(picod: PicoD) -> None:
    closed = picod.workspace / "closed"
    closed.mkdir(mode=0o700)
    for _ in range(3):
        answer = picod.call("POST", "/api/execute", {"command": ["true"], "working_dir": "closed"})
        assert answer.status == 400
        picod.execute("true")


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_a_program_that_kills_or_stops_its_guard_gains_nothing(start_picod, number: str) -> None:
    picod = start_picod(single_uid=True)
    background = picod.shell("sleep 1000 >/dev/null 2>&1 & echo $!")["stdout"].strip()

    picod.shell("sleep 0.05")  # start times have a resolution of 10 ms

    script = (
        f"sleep 1001 & setsid sh -c 'sleep 1002 & sleep 1003' & sleep 0.1; kill -{number} $PPID; sleep 1004"
    )
    result = picod.shell(script, timeout="1s")

    if number == "KILL":
        assert result["exit_code"] == 137
        assert "killed its own guard" in result["stderr"]
    else:
        assert result["exit_code"] == 124
    assert [str(pid) for pid in descendants(picod.pid)] == [background]


@pytest.mark.skipif(not shutil.which("choom"), reason="needs choom")
def test_programs_go_as_early_as_picod_when_memory_runs_out(start_picod: StartPicod) -> None:
    picod = start_picod(prefix=("choom", "-n", "300", "--"))
    for _ in range(2):  # from a fresh guard, and from one that waited
        assert picod.execute("cat", "/proc/self/oom_score_adj")["stdout"] == "300\n"
