"""The CLI at a real terminal: shells, resizing, keys, signals, and the terminal put back whatever happens."""

from __future__ import annotations

import json
import signal

import pytest

from tests.e2e import harness
from tests.e2e.here import cli
from tests.e2e.person import at_terminal


def _shell(server: harness.Server, session: str) -> list[str]:
    return [*harness.CLI, "shell", session]


def _env(server: harness.Server) -> dict[str, str]:
    return server.env({"TERM": "xterm-256color"})


def _running(server: harness.Server, session: str) -> int:
    found = json.loads(cli(server, "ps", session, "-o", "json").stdout)
    return sum(process["state"] == "running" for process in found)


def test_a_shell_is_a_terminal(server: harness.Server, session: str) -> None:
    with at_terminal(_shell(server, session), _env(server), columns=101, rows=33) as me:
        before = me.mode()
        me.types("stty size; echo term=$TERM; tty -s && echo is a tty\r")
        me.sees(r"33 101\r\nterm=xterm-256color\r\nis a tty")
        me.resizes(120, 40)
        me.types("until stty size | grep '40 120'; do sleep 0.1; done\r")
        me.sees(r"[\r\n]40 120\r\n")
        me.types("sh -c 'echo up; sleep 600; true'\r")
        me.sees(r"[\r\n]up\r\n")
        me.types_until("\x03", r"\^C[^$]*\$ ")  # Ctrl-C, and the prompt
        me.types("echo interrupted: $?\r")
        me.sees(r"interrupted: 130")
        me.types("sh -c 'echo cat follows; exec cat'\r")
        me.sees(r"[\r\n]cat follows\r\n")
        me.types("echoed\r")
        me.sees(r"echoed\r\nechoed")
        me.types("\x1a")  # Ctrl-Z
        me.sees(r"Stopped")
        # Bash hears of it later, and does not exit before.
        me.types(
            "kill -9 %1; until [ -z \"$(jobs -s)\" ]; do sleep 0.1; done; printf '\\033[31mred\\033[0m\\n'\r"
        )
        me.sees(r"[\r\n]\x1b\[31mred\x1b\[0m")
        me.types("exit 9\r")
        assert me.exit_code() == 9
        assert me.mode() == before


def test_ctrl_d_ends_a_shell(server: harness.Server, session: str) -> None:
    with at_terminal(_shell(server, session), _env(server)) as me:
        me.types("true; echo ready\r")
        me.sees(r"[\r\n]ready")
        me.types("\x04")
        assert me.exit_code() == 0


def test_the_way_out_ends_the_shell_and_puts_the_terminal_back(server: harness.Server, session: str) -> None:
    with at_terminal(_shell(server, session), _env(server)) as me:
        before = me.mode()
        me.types("trap '' INT HUP TERM; echo stuck; sleep 600\r")
        me.sees(r"[\r\n]stuck")
        me.types("\r~.")
        assert me.exit_code() == 129
        assert me.mode() == before
        assert b"\x1b[?1049l" in me.screen  # out of whatever the program had switched on
    harness.eventually(lambda: _running(server, session) == 0, within=60)


def test_a_shell_that_ignores_the_end_is_left(server: harness.Server, session: str) -> None:
    with at_terminal(_shell(server, session), _env(server)) as me:
        me.types("echo ready\r")
        me.sees(r"[\r\n]ready")
        me.sends(signal.SIGTERM)  # an interactive bash ignores it
        assert me.exit_code() == 128 + signal.SIGTERM
    harness.eventually(lambda: _running(server, session) == 0, within=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_shell_that_is_told_to_end_puts_the_terminal_back(
    server: harness.Server, session: str, number: signal.Signals
) -> None:
    with at_terminal(_shell(server, session), _env(server)) as me:
        before = me.mode()
        me.types("trap 'exit 3' TERM HUP; echo ready; while true; do sleep 0.1; done\r")
        me.sees(r"[\r\n]ready\r\n")
        me.sends(number)
        assert me.exit_code() == 3
        assert me.mode() == before
    harness.eventually(lambda: _running(server, session) == 0, within=60)


def test_a_program_gets_a_terminal_where_we_have_one(server: harness.Server, session: str) -> None:
    program = "test -t 0 && test -t 1 && echo terminal || echo none"
    words = [session, "--", "sh", "-c", program]
    for options, expected in (([], "terminal"), (["--no-tty"], "none")):
        with at_terminal([*harness.CLI, "exec", *options, *words], _env(server)) as me:
            me.sees(rf"{expected}\r\n")
            assert me.exit_code() == 0
    assert cli(server, "exec", *words, input=b"").stdout == b"none\n"
    assert cli(server, "exec", "-t", *words, input=b"").stdout == b"terminal\r\n"


def test_input_of_a_run_is_typed(server: harness.Server) -> None:
    with at_terminal([*harness.CLI, "run", "print('you are', input('name? '))"], _env(server)) as me:
        me.sees(r"name\? ")
        me.types("Ada\r")
        me.sees("you are Ada")
        assert me.exit_code() == 0


def test_a_terminal_that_is_attached_to_goes_on_without_us(server: harness.Server, session: str) -> None:
    with at_terminal(_shell(server, session), _env(server)) as me:
        me.types("echo first\r")
        me.sees(r"[\r\n]first")
        (process,) = [
            p for p in json.loads(cli(server, "ps", session, "-o", "json").stdout) if p["state"] == "running"
        ]
        assert process["pty"] == {"cols": 100, "rows": 30}
        with at_terminal([*harness.CLI, "attach", session, process["id"]], _env(server), columns=90) as other:
            other.types("stty size\r")
            other.sees(r"30 90")
            other.types("\r~.")
            assert other.exit_code() == 0
        assert me.exit_code() == 1  # the other one took the terminal over
        assert b"another reader" in me.screen
    assert _running(server, session) == 1
    assert cli(server, "kill", session, process["id"], "--signal", "HUP").returncode == 0
    harness.eventually(lambda: _running(server, session) == 0, within=60)


def test_a_shell_without_a_terminal_says_what_to_do(server: harness.Server, session: str) -> None:
    done = cli(server, "shell", session, input=b"ls\n")
    assert done.returncode == 2
    assert b"exec SESSION" in done.stderr
    assert done.stderr.count(b"\n") == 1
