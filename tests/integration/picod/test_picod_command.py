"""The command of an AgentRuntime: when it is ready, what it logs, and how its ports are reached from outside."""

from __future__ import annotations

import array
import os
import socket

import pytest

from .conftest import ROOT, PicoD, StartPicod, eventually

SERVER = (
    "import socket,sys,time\nprint('starting', flush=True)\ntime.sleep(0.3)\n"
    "s=socket.socket(socket.{family}); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
    "s.bind(('{host}', {port})); s.listen()\nprint('up', file=sys.stderr, flush=True)\n"
    "while True:\n c,_=s.accept(); c.sendall(b'hello'); c.close()"
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serving(start_picod: StartPicod, family: str, host: str) -> tuple[PicoD, int]:
    port = free_port()
    script = SERVER.format(family=family, host=host, port=port)
    picod = start_picod(command=["python3", "-c", script], ports=[port], env={"PATH": "/usr/bin:/bin"})
    return picod, port


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_ready_waits_until_the_commands_ports_accept(start_picod: StartPicod, family: str, host: str) -> None:
    picod, _ = serving(start_picod, family, host)

    assert picod.call("GET", "/ready", token="").json() == {"ready": True}
    assert picod.call("GET", "/health").json()["command"] == {"state": "running"}
    assert picod.call("GET", "/api/logs?stream=stdout").body == b"starting\n"
    assert picod.call("GET", "/api/logs?stream=stderr").body == b"up\n"
    assert picod.call("GET", "/api/logs").body == b"starting\nup\n"
    assert picod.call("GET", "/api/logs?tail_bytes=3").body == b"up\n"
    assert picod.call("GET", "/api/logs?tail_bytes=0").body == b""
    for bad in ("stream=x", "tail_bytes=-1", "tail_bytes=x"):
        assert picod.call("GET", f"/api/logs?{bad}").status == 400


def test_ready_without_a_command_is_at_once_and_there_are_no_logs(picod: PicoD) -> None:
    assert picod.call("GET", "/ready").json() == {"ready": True}
    answer = picod.call("GET", "/api/logs")
    assert (answer.status, answer.json()["code"]) == (404, "no_command")


def test_ready_tells_a_command_that_ended(start_picod: StartPicod) -> None:
    picod = start_picod(command=["sh", "-c", "echo dying >&2; exit 7"], ports=[free_port()])

    answer = picod.call("GET", "/ready?timeout=20s")

    assert answer.status == 503
    assert (answer.json()["code"], answer.json()["exit_code"]) == ("start_failed", 7)
    assert answer.json()["retryable"] is False
    assert picod.call("GET", "/health").json()["command"] == {"state": "exited", "exit_code": 7}
    assert picod.call("GET", "/api/logs").body == b"dying\n"
    assert picod.shell("echo PicoD stays")["exit_code"] == 0


def test_ready_tells_a_command_that_did_not_start(start_picod: StartPicod) -> None:
    picod = start_picod(command=["absent-program"], ports=[free_port()])

    answer = picod.call("GET", "/ready")

    assert (answer.status, answer.json()["exit_code"]) == (503, 127)
    assert "absent-program: command not found" in answer.json()["detail"]
    assert b"command not found" in picod.call("GET", "/api/logs").body


def test_ready_times_out(start_picod: StartPicod) -> None:
    picod = start_picod(command=["sleep", "600"], ports=[free_port()])

    answer = picod.call("GET", "/ready?timeout=200ms")

    assert (answer.status, answer.json()["code"]) == (504, "start_timed_out")
    assert picod.call("GET", "/ready?timeout=11m").status == 400


def test_the_commands_environment_and_directory_are_the_templates(start_picod: StartPicod) -> None:
    picod = start_picod(
        bound=False,
        command=["sh", "-c", "pwd; echo $A; id -u"],
        working_dir="/usr",
        env={"A": "t", "PATH": "/bin:/usr/bin"},
    )
    picod.bind(env={"A": "session's"})
    uid = "1000" if ROOT else str(os.geteuid())

    eventually(lambda: picod.call("GET", "/api/logs").body == f"/usr\nt\n{uid}\n".encode())
    assert picod.shell("echo $A")["stdout"] == "session's\n"


def test_logs_keep_the_last_mebibyte_of_each_stream(start_picod: StartPicod) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' a; echo; echo end; echo other >&2; exec sleep 600"
    picod = start_picod(command=["sh", "-c", script])

    log = eventually(
        lambda: (b := picod.call("GET", "/api/logs?stream=stdout").body).endswith(b"end\n") and b
    )

    assert len(log) == 1 << 20
    assert picod.call("GET", "/api/logs?stream=stderr").body == b"other\n"


# The control socket


def dial(picod: PicoD, line: bytes) -> tuple[bytes, list[int]]:
    with socket.socket(socket.AF_UNIX) as asker:
        asker.settimeout(10)
        asker.connect(picod.control_path)
        asker.sendall(line)
        data, ancillary, _, _ = asker.recvmsg(64, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for level, kind, content in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(content)
    return data, list(fds)


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_dialled_port_comes_out_as_a_connected_descriptor(
    start_picod: StartPicod, family: str, host: str
) -> None:
    picod, port = serving(start_picod, family, host)
    assert picod.call("GET", "/ready").status == 200

    for _ in range(20):
        data, fds = dial(picod, b"DIAL %d\n" % port)
        assert data == b"+"
        with socket.socket(fileno=fds[0]) as connection:
            connection.setblocking(True)
            assert connection.recv(100) == b"hello"


def test_a_refused_dial_names_the_reason(picod: PicoD) -> None:
    assert dial(picod, b"DIAL %d\n" % free_port()) == (b"-ECONNREFUSED\n", [])


@pytest.mark.parametrize(
    "line", [b"DIAL 0\n", b"DIAL 65536\n", b"DIAL x\n", b"DIAL 80 \n", b"dial 80\n", b"\n", b"x" * 100]
)
def test_anything_else_closes_the_connection(picod: PicoD, line: bytes) -> None:
    try:
        assert dial(picod, line) == (b"", [])
    except ConnectionResetError:
        pass
