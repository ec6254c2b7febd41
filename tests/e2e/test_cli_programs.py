"""`exec`, `run`, `ps`, `attach` and `kill` on a real server: bytes, signals, exit codes, state."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e import harness
from tests.e2e.here import cli

WITHIN_S = 60.0


@contextmanager
def running(server: harness.Server, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """The CLI beside us, with pipes at both ends."""
    client = subprocess.Popen(
        [*harness.CLI, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=server.env(),
        bufsize=0,
    )
    try:
        yield client
    finally:
        if client.poll() is None:
            client.kill()
        client.wait()
        for stream in (client.stdin, client.stdout, client.stderr):
            if stream is not None:
                stream.close()


def line_of(client: subprocess.Popen[bytes]) -> bytes:
    assert client.stdout is not None
    return client.stdout.readline()


def processes(server: harness.Server, session: str, state: str) -> list[str]:
    found = json.loads(cli(server, "ps", session, "-o", "json").stdout)
    return [process["id"] for process in found if process["state"] == state]


def test_exec_is_transparent(server: harness.Server, session: str) -> None:
    raw = bytes(range(256))
    done = cli(server, "exec", session, "--", "sh", "-c", "cat; printf '\\377' >&2; exit 7", input=raw)
    assert (done.stdout, done.stderr, done.returncode) == (raw, b"\xff", 7)
    done = cli(server, "exec", session, "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program" in done.stderr
    done = cli(
        server, "exec", "-w", "/tmp", "-e", "A=b c", session, "--", "sh", "-c", 'echo "$A $PWD"; kill -9 $$'
    )
    assert (done.stdout, done.returncode) == (b"b c /tmp\n", 137)
    assert cli(server, "exec", "--timeout", "200ms", session, "--", "sleep", "600").returncode == 124
    assert cli(server, "exec", session, "--", "cat").stdout == b""  # /dev/null is an empty input
    assert cli(server, "exec", "--no-stdin", session, "--", "cat", input=b"x").stdout == b""


def test_both_ways_as_it_comes(server: harness.Server, session: str) -> None:
    """A dialogue: neither side could go on if anything waited for the end."""
    program = "while read -r word; do echo heard $word; done; echo end"
    with running(server, "exec", session, "--", "sh", "-c", program) as client:
        assert client.stdin is not None
        for word in (b"one", b"two", b"three"):
            client.stdin.write(word + b"\n")
            assert line_of(client) == b"heard " + word + b"\n"
        client.stdin.close()
        assert line_of(client) == b"end\n"
        assert client.wait(WITHIN_S) == 0


def test_much_of_both(server: harness.Server, session: str) -> None:
    data = os.urandom(1 << 20) * 30
    done = cli(server, "exec", session, "--", "tee", "/dev/stderr", input=data)
    assert done.returncode == 0
    for got in (done.stdout, done.stderr):
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


def test_signals_reach_the_program(server: harness.Server, session: str) -> None:
    program = "trap 'echo caught; exit 5' {}; echo up; while :; do sleep 0.05; done"
    for number in (signal.SIGINT, signal.SIGTERM):
        name = number.name.removeprefix("SIG")
        with running(server, "exec", session, "--", "sh", "-c", program.format(name)) as client:
            assert line_of(client) == b"up\n"
            client.send_signal(number)
            assert line_of(client) == b"caught\n"
            assert client.wait(WITHIN_S) == 5


def test_signals_of_the_programs_own_reach_it_as_often_as_they_come(
    server: harness.Server, session: str
) -> None:
    program = "trap 'echo one' USR1; trap 'echo two; exit 6' USR2; echo up; while :; do sleep 0.05; done"
    with running(server, "exec", session, "--", "sh", "-c", program) as client:
        assert line_of(client) == b"up\n"
        for _ in range(3):
            client.send_signal(signal.SIGUSR1)
            assert line_of(client) == b"one\n"
        client.send_signal(signal.SIGUSR2)
        assert line_of(client) == b"two\n"
        assert client.wait(WITHIN_S) == 6


def test_a_second_ctrl_c_kills(server: harness.Server, session: str) -> None:
    program = "trap 'echo no' INT; (trap '' INT; sleep 600) & echo up; while :; do sleep 0.05; done"
    with running(server, "exec", session, "--", "sh", "-c", program) as client:
        assert line_of(client) == b"up\n"
        client.send_signal(signal.SIGINT)
        assert line_of(client) == b"no\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(WITHIN_S) == 137
    assert cli(server, "exec", session, "--", "pgrep", "sleep").returncode == 1


def test_a_reader_that_goes_away_ends_the_program(server: harness.Server, session: str) -> None:
    with running(server, "exec", session, "--", "yes") as client:
        assert client.stdout is not None
        client.stdout.read(10)
        client.stdout.close()
        assert client.wait(WITHIN_S) == 1
    harness.eventually(lambda: not processes(server, session, "running"), within=WITHIN_S)


def test_a_background_process_is_watched_and_killed(server: harness.Server, session: str) -> None:
    program = "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo done >&2; exit 4"
    started = cli(server, "exec", "--background", session, "--", "sh", "-c", program)
    assert started.returncode == 0, started.stderr
    id = started.stdout.decode().strip()
    assert id in cli(server, "ps", session).stdout.decode()
    with running(server, "attach", session, id) as client:
        assert line_of(client) == b"begun\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(WITHIN_S) == 130
    assert processes(server, session, "running") == [id]
    with running(server, "attach", session, id) as client:
        assert line_of(client) == b"begun\n"  # from the beginning of what is kept
        assert cli(server, "exec", session, "--", "touch", "go").returncode == 0
        assert client.wait(WITHIN_S) == 4
        assert client.stderr is not None
        assert client.stderr.read() == b"done\n"
    assert cli(server, "kill", session, id).returncode == 1  # it has ended
    other = cli(server, "exec", "-b", session, "--", "sleep", "600").stdout.decode().strip()
    assert cli(server, "kill", session, other, "--signal", "9").returncode == 0
    assert cli(server, "attach", session, other).returncode == 137
    assert "ended: SIGKILL" in cli(server, "ps", session).stdout.decode()


def test_bad_input_is_one_line(server: harness.Server, session: str) -> None:
    for code, argv in (
        (1, ("exec", "nosession", "--", "ls")),
        (1, ("ps", "nosession")),
        (1, ("attach", session, "p-0000")),
        (1, ("kill", session, "p-0000")),
        (2, ("exec", "-w", "/nowhere", session, "--", "ls")),
        (2, ("exec", "-e", "=x", session, "--", "ls")),
    ):
        done = cli(server, *argv)
        assert (done.returncode, done.stdout) == (code, b""), (argv, done)
        assert done.stderr.count(b"\n") == 1, (argv, done)
    sleeping = cli(server, "exec", "-b", session, "--", "sleep", "600").stdout.decode().strip()
    done = cli(server, "kill", session, sleeping, "-s", "NOSUCH")
    assert done.returncode == 2
    assert b"SIGINT" in done.stderr
    assert cli(server, "kill", session, sleeping, "-s", "KILL").returncode == 0


def sessions(server: harness.Server) -> list[str]:
    return [made["id"] for made in json.loads(cli(server, "session", "list", "-o", "json").stdout)]


# --- run --------------------------------------------------------------------------------------------------


def test_run_is_a_program_of_its_own(server: harness.Server, tmp_path: Path) -> None:
    before = sessions(server)
    done = cli(server, "run", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 3)
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])")
    done = cli(server, "run", "-f", str(script), input=bytes(range(256)))
    assert (done.stdout, done.returncode) == (bytes(range(256))[::-1], 0)
    done = cli(server, "run", "-f", "-", "--language", "bash", input=b"echo $((6 * 7))")
    assert (done.stdout, done.returncode) == (b"42\n", 0)
    assert sessions(server) == before


def test_output_of_a_run_comes_as_it_is_written_and_ctrl_c_ends_it(server: harness.Server) -> None:
    before = sessions(server)
    with running(server, "run", "import time; print('up', flush=True); time.sleep(600)") as client:
        assert line_of(client) == b"up\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(WITHIN_S) == 130
        assert client.stderr is not None
        assert client.stderr.read().rstrip().endswith(b"KeyboardInterrupt")
    assert sessions(server) == before


def test_in_a_session_state_stays(server: harness.Server, session: str) -> None:
    def run(code: str, *more: str) -> tuple[int, bytes, bytes]:
        done = cli(server, "run", "--session", session, code, *more)
        return done.returncode, done.stdout, done.stderr

    assert run("x = 6\ndef double(n): return 2 * n") == (0, b"", b"")
    assert run("print('text'); double(x) * 3.5") == (0, b"text\n42.0\n", b"")
    assert run("import sys; sys.stderr.write('warn')") == (0, b"4\n", b"warn")
    code, out, err = run("1 +\n")
    assert (code, out) == (1, b"")
    assert b"SyntaxError" in err
    code, out, err = run("print('before'); double(undefined)")
    assert (code, out) == (1, b"before\n")
    assert b"NameError: name 'undefined' is not defined" in err
    assert run("import sys; sys.exit(3)")[0] == 3
    assert run("raise SystemExit('sorry')")[0] == 1
    assert run("x") == (0, b"6\n", b"")
    assert run("y=5; echo $y", "--language", "bash") == (0, b"5\n", b"")
    assert run("echo $y", "--language", "bash") == (0, b"5\n", b"")
    assert run("import time; time.sleep(600)", "--timeout", "300ms")[0] == 124
    assert run("x") == (0, b"6\n", b"")


def test_charts_go_to_files(server: harness.Server, session: str, tmp_path: Path) -> None:
    code = "import matplotlib.pyplot as plt\nfor n in (1, 2):\n    plt.plot([n, 0])\n    plt.show()\n'drawn'"
    first, second = tmp_path / "chart.png", tmp_path / "chart-2.png"
    done = cli(server, "run", "--session", session, "--png", str(first), code)
    assert (done.returncode, done.stdout) == (0, b"'drawn'\n")
    for file in (first, second):
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", file.read_bytes()[16:24]) > (100, 100)
        assert str(file).encode() in done.stderr
    done = cli(server, "run", "--session", session, "plt.plot([1, 2]);")
    assert done.stdout.startswith(b"<Figure size")
    assert b"--png" in done.stderr
    assert (
        cli(server, "run", "--session", session, "--png", "/nowhere/x.png", "plt.plot([1]);").returncode == 1
    )


def test_ctrl_c_interrupts_a_cell_and_keeps_its_variables(server: harness.Server, session: str) -> None:
    assert cli(server, "run", "--session", session, "kept = 'kept'").returncode == 0
    with running(server, "run", "--session", session, "import time; print('up'); time.sleep(600)") as client:
        assert line_of(client) == b"up\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(WITHIN_S) == 130
        assert client.stderr is not None
        assert b"KeyboardInterrupt" in client.stderr.read()
    assert cli(server, "run", "--session", session, "kept").stdout == b"'kept'\n"


def test_run_can_keep_its_session_and_what_it_defined(server: harness.Server) -> None:
    done = cli(server, "run", "--keep", "x = 'still here'")
    assert done.returncode == 0, done.stderr
    id = done.stderr.decode().split()[-1]
    assert cli(server, "run", "--session", id, "x").stdout == b"'still here'\n"
    assert cli(server, "session", "delete", id).returncode == 0
