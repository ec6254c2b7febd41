"""PicoD as a process: as process 1, from a zip without site, its configuration, its meter."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from .conftest import PYTHON, ROOT, SOURCES, Keys, PicoD, StartPicod, descendants, eventually

PID_1 = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


# Process 1


@pytest.fixture
def pid_1(start_picod: StartPicod) -> PicoD:
    if not ROOT:
        pytest.skip("a pid namespace needs root")
    return start_picod(prefix=PID_1)


def test_process_1_cannot_be_ended_from_inside(pid_1: PicoD) -> None:
    assert pid_1.shell("cat /proc/1/comm")["stdout"] == "picod\n"
    pid_1.shell("for s in TERM INT HUP QUIT USR1 STOP KILL; do kill -$s 1; done; kill -9 -1")

    assert pid_1.shell("echo alive")["stdout"] == "alive\n"


def test_process_1_cannot_be_ended_by_its_own_uid(start_picod: StartPicod) -> None:
    if not ROOT:
        pytest.skip("a pid namespace needs root")
    picod = start_picod(prefix=PID_1, single_uid=True)

    picod.shell("for s in TERM INT HUP QUIT USR1 USR2 PIPE ALRM STOP KILL SEGV; do kill -$s 1; done")

    assert picod.shell("echo alive")["stdout"] == "alive\n"


def test_process_1_reaps_orphans_and_tells_true_exit_codes(pid_1: PicoD) -> None:
    def one(number: int) -> bool:
        script = f"(sleep 0.01; exit 9) & setsid sh -c 'sleep 0.02 & exit 8' & exit {number % 200}"
        return bool(pid_1.shell(script)["exit_code"] == number % 200)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(300)))

    def left() -> list[str]:
        lines = pid_1.execute("ps", "-eo", "pid=,stat=,comm=")["stdout"].splitlines()
        return [line for line in lines if not line.split()[2].startswith(("picod", "ps"))]

    eventually(lambda: left() == [])  # no zombie, no orphan


def test_the_tree_of_a_timeout_is_dead_in_a_pid_namespace(pid_1: PicoD) -> None:
    pid_1.shell("sleep 1001 & setsid sh -c 'sleep 1002 & sleep 1003' & sleep 1004", timeout="300ms")

    assert pid_1.shell("pgrep sleep")["exit_code"] == 1


def test_the_user_cannot_look_into_picod(picod_both: PicoD) -> None:
    for what in ("mem", "environ", "fd/3", "maps"):
        result = picod_both.execute("cat", f"/proc/{picod_both.pid}/{what}")
        assert result["exit_code"] != 0 or (
            os.geteuid() == 0 and picod_both.execute("id", "-u")["stdout"] == "0\n"
        )


@pytest.mark.skipif(not ROOT, reason="signalling another uid is what is tried")
def test_the_user_cannot_signal_picod_or_the_guard(picod: PicoD) -> None:
    result = picod.shell(f"sleep 0.3; kill -9 {picod.pid}; kill -9 $PPID; echo alive")
    assert result["stdout"] == "alive\n"
    assert result["stderr"].count("not permitted") == 2


# From a zip, importing nothing late

LATE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from agentcube.picod import main
main.warm()
with open(sys.argv[2]) as file:
    config = json.load(file)
# As in a root file system without Python: nothing more can be imported, no codec looked up.
sys.path.clear()
sys.meta_path.clear()
sys.path_hooks.clear()
sys.path_importer_cache.clear()
main.run(config)
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """What the launcher ships: PicoD, http1, durations, and the kernel host that PicoD hands on, as a zip."""
    path = tmp_path / "picod.zip"
    package = SOURCES / "agentcube"
    files = [package / "__init__.py", package / "durations.py"]
    for room in ("picod", "http1", "kernelhost"):
        files += sorted((package / room).rglob("*.py"))
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(SOURCES))
    return path


def test_everything_is_served_from_a_zip_with_no_import_left_to_do(
    archive: Path, tmp_path: Path, keys: Keys
) -> None:
    workspace = tmp_path / "ws"
    workspace.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    config = {
        "sandbox_id": "sb-1",
        "public_keys": [keys.pem],
        "listen_fd": listener.fileno(),
        "workspace": str(workspace),
        "single_uid": True,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "env": {"PATH": "/usr/bin:/bin"},
        "command": ["sh", "-c", "echo up; exec sleep 600"],
        "limits": {"memory_bytes": 1 << 30, "pids_max": 0, "mode": "rlimit"},
    }
    (tmp_path / "config").write_text(json.dumps(config))
    process = subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", LATE, str(archive), str(tmp_path / "config")],
        pass_fds=(listener.fileno(),),
        env={},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    listener.close()
    picod = PicoD(process.pid, str(tmp_path / "s"), "", workspace, keys)
    try:
        assert picod.call("GET", "/health").json()["command"] == {"state": "running"}
        assert picod.bind().status == 200
        assert picod.call("GET", "/ready").json() == {"ready": True}
        assert picod.shell("echo é; exit 3")["exit_code"] == 3
        assert picod.shell("sleep 60", timeout="100ms")["exit_code"] == 124
        assert picod.execute("cat", stdin="x" * 300_000)["exit_code"] == 0
        assert picod.execute("absent")["exit_code"] == 127
        assert picod.write("d/ü.txt", b"x" * 200_000).status == 200
        assert picod.call("GET", "/api/files/d/%C3%BC.txt", headers={"Range": "bytes=1-2"}).status == 206
        assert picod.call("GET", "/api/files?path=d").status == 200
        assert picod.call("GET", "/api/logs").body == b"up\n"
        body = b'--B\r\nContent-Disposition: form-data; name="path"\r\n\r\na\r\n'
        body += b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--B--\r\n'
        form = {"Content-Type": "multipart/form-data; boundary=B"}
        assert picod.call("POST", "/api/files", body, form).status == 200
        for method, path in (("GET", "/x"), ("PUT", "/health"), ("GET", "/api/files/%ff"), ("POST", "/bind")):
            assert picod.call(method, path, b"{" if method == "POST" else None).status in (400, 404, 405)
        assert picod.call("GET", "/api/files", token="a.b.c").status == 401
        assert picod.call("GET", "/api/files?path=%F0%9F%98%80").status == 404
    finally:
        for pid in descendants(process.pid, with_picod=True):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        _, log = process.communicate()
    assert b"Traceback" not in log, log.decode()


def test_the_modules_are_python_3_9(tmp_path: Path) -> None:
    import ast

    for room in ("picod", "http1", "durations.py"):
        path = SOURCES / "agentcube" / room
        for file in [path] if path.is_file() else path.rglob("*.py"):
            ast.parse(file.read_text(), feature_version=(3, 9))


# The program itself


def run_picod(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-m", "agentcube.picod", *arguments]
    return subprocess.run(
        command,
        env={"PYTHONPATH": str(SOURCES), **env},
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("config", "status", "said"),
    [
        ("{", 2, "picod:"),
        ("[]", 2, "JSON object"),
        ('{"listen": "nowhere"}', 2, "nowhere"),
        ('{"listen": "127.0.0.1:0"}', 1, "sandbox_id"),
        ('{"listen": "127.0.0.1:0", "sandbox_id": "x"}', 1, "PEM"),
        ('{"listen": "127.0.0.1:0", "sandbox_id": "x", "colour": 1}', 1, "colour"),
        ('{"listen": "127.0.0.1:0", "sandbox_id": 5}', 1, "sandbox_id"),
    ],
)
def test_a_bad_configuration_ends_with_one_clear_line(
    tmp_path: Path, config: str, status: int, said: str
) -> None:
    (tmp_path / "config").write_text(config)
    done = run_picod("--config", str(tmp_path / "config"))

    assert done.returncode == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_serves_on_tcp_with_keys_from_the_environment(tmp_path: Path, keys: Keys) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {"sandbox_id": "sb-1", "workspace": str(tmp_path), "single_uid": True, "session_id": "s-1"}
    (tmp_path / "config").write_text(json.dumps(config))
    process = subprocess.Popen(
        [
            PYTHON,
            "-m",
            "agentcube.picod",
            "--config",
            str(tmp_path / "config"),
            "--listen",
            f"127.0.0.1:{port}",
        ],
        env={"PYTHONPATH": str(SOURCES), "PICOD_AUTH_PUBLIC_KEY": keys.pem, "PATH": os.environ["PATH"]},
    )
    try:

        def answer() -> bytes:
            try:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    head = f"GET /api/files HTTP/1.0\r\nAuthorization: Bearer {keys.router()}\r\n\r\n"
                    connection.sendall(head.encode())
                    return b"".join(iter(lambda: connection.recv(4096), b""))
            except ConnectionRefusedError:
                return b""

        assert eventually(answer).startswith(b"HTTP/1.1 200")
    finally:
        process.kill()
        process.wait()


# Memory without cgroups

HOG = "b=[]\nfor i in range({mib}):\n b.append(bytearray(b'x')*(1<<20))\nprint('done')"


def test_the_meter_kills_the_largest_process_and_says_so(start_picod: StartPicod) -> None:
    limits = {"memory_bytes": 300 << 20, "pids_max": 0, "mode": "rlimit"}
    picod = start_picod(limits=limits, single_uid=True)

    small = picod.execute("python3", "-c", HOG.format(mib=50))
    assert (small["stdout"], small["exit_code"]) == ("done\n", 0)

    # Each of them is below the limit of one process; together they are over the sandbox's.
    hogs = 'python3 -c "$0" & python3 -c "$1"; wait'
    wait = "\nimport time; time.sleep(20)"
    result = picod.execute("sh", "-c", hogs, HOG.format(mib=120) + wait, HOG.format(mib=220) + wait)

    assert "over the sandbox's memory limit" in result["stderr"]
    assert "killed the largest process" in result["stderr"]


def test_what_forks_share_counts_once(start_picod: StartPicod) -> None:
    """Kernels are forks of one process that has libraries loaded; each seems to have them all."""
    limits = {"memory_bytes": 300 << 20, "pids_max": 0, "mode": "rlimit"}
    picod = start_picod(limits=limits, single_uid=True)
    family = (
        "import os, time\nshared = bytearray(b'x') * (150 << 20)\n"
        "for _ in range(4):\n if os.fork() == 0: time.sleep(20)\n"
        "time.sleep(1.5)"  # six looks
    )

    result = picod.execute("python3", "-c", family)

    assert (result["exit_code"], result["stderr"]) == (0, "")


def test_one_process_cannot_take_more_than_the_sandbox_has(start_picod: StartPicod) -> None:
    limits = {"memory_bytes": 300 << 20, "pids_max": 0, "mode": "rlimit"}
    picod = start_picod(limits=limits, single_uid=True)

    result = picod.execute("python3", "-c", HOG.format(mib=600))

    assert result["exit_code"] != 0
    assert "MemoryError" in result["stderr"]
