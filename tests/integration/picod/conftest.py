"""A real PicoD per test: a subprocess on a unix socket, with tokens signed by PyJWT."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SOURCES = Path(__file__).parents[3] / "src"
ROOT = os.geteuid() == 0
USER = 1000 if ROOT else os.geteuid()
"""Whose programs and files those of a sandbox are, unless one uid is for all."""
PYTHON = os.environ.get("PICOD_PYTHON", sys.executable)
"""The interpreter that PicoD runs under: any from 3.9, as a sandbox's image may have it."""


@dataclass(frozen=True)
class Keys:
    """The deployment's key: signs as the manager and as the Router."""

    private: rsa.RSAPrivateKey

    @property
    def pem(self) -> str:
        public = self.private.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def token(self, **claims: Any) -> str:
        now = int(time.time())
        return jwt.encode({"iat": now, "exp": now + 300, **claims}, self.private, "RS256", {"kid": "k1"})

    def binding(self, session: str = "s-1", sandbox: str = "sb-1", **more: Any) -> str:
        claims = {"iss": "agentcube-manager", "aud": sandbox, "session_id": session, "sandbox_id": sandbox}
        return self.token(**{**claims, **more})

    def router(self, session: str = "s-1", sandbox: str = "sb-1", **more: Any) -> str:
        claims = {"iss": "agentcube-router", "aud": session, "session_id": session, "sandbox_id": sandbox}
        return self.token(**{**claims, **more})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Stream:
    """Events as they come. Iterating ends with the stream, which must end cleanly."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._answer:
            event = json.loads(line)
            if event["event"] != "ping":
                yield event

    def until(self, event: str) -> dict[str, Any]:
        """The next event of that name."""
        return next(one for one in self if one["event"] == event)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("picod", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class PicoD:
    """A running PicoD, and a client that speaks for the bound session."""

    pid: int
    path: str
    control_path: str
    workspace: Path
    keys: Keys
    token: str = ""
    connections: ExitStack = field(default_factory=ExitStack)

    def raw(self) -> socket.socket:
        """A connected socket, closed with the fixture."""
        connection = self.connections.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(60)
        connection.connect(self.path)
        return connection

    def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
    ) -> Answer:
        """One request on a connection of its own; `body` is bytes, or an object that becomes JSON."""
        bearer = self.token if token is None else token
        sent = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, target, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        finally:
            connection.close()

    @contextmanager
    def streaming(self, method: str, target: str, body: Any = None, **headers: str) -> Iterator[Stream]:
        """A request whose answer is a stream of events, read as they come."""
        connection = _UnixConnection(self.path)
        try:
            sent = {"Authorization": f"Bearer {self.token}", **headers}
            connection.request(method, target, None if body is None else json.dumps(body), sent)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield Stream(answer)
        finally:
            connection.close()

    def start(self, **body: Any) -> str:
        """The id of a process in the background."""
        answer = self.call("POST", "/api/processes", {"background": True, **body})
        assert answer.status == 201, answer.body
        id: str = answer.json()["id"]
        return id

    def events(self, **body: Any) -> list[dict[str, Any]]:
        """Everything that a process in the foreground says."""
        with self.streaming("POST", "/api/processes", body) as stream:
            return list(stream)

    def process(self, id: str) -> Any:
        answer = self.call("GET", f"/api/processes/{id}")
        assert answer.status == 200, answer.body
        return answer.json()

    def bind(self, session: str = "s-1", **body: Any) -> Answer:
        answer = self.call("POST", "/bind", {"token": self.keys.binding(session), **body}, token="")
        if answer.status == 200:
            self.token = self.keys.router(session)
        return answer

    def execute(self, *argv: str, **fields: Any) -> Any:
        """The JSON of a successful /api/execute."""
        answer = self.call("POST", "/api/execute", {"command": list(argv), **fields})
        assert answer.status == 200, answer.body
        return answer.json()

    def shell(self, script: str, **fields: Any) -> Any:
        return self.execute("sh", "-c", script, **fields)

    def write(self, path: str, content: bytes, **fields: Any) -> Answer:
        encoded = base64.b64encode(content).decode()
        return self.call("POST", "/api/files", {"path": path, "content": encoded, **fields})


def problem(answer: Answer) -> tuple[int, str]:
    """Status and code of a problem document."""
    return answer.status, answer.json()["code"]


def eventually(predicate: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Look until `predicate` is true, yielding the processor in between; its value."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        value = predicate()
        if value:
            return value
        os.sched_yield()
        signal.sigtimedwait((), 0.005)
    raise AssertionError("it did not become true in time")


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys(rsa.generate_private_key(public_exponent=65537, key_size=2048))


StartPicod = Callable[..., PicoD]


@pytest.fixture
def start_picod(keys: Keys) -> Iterator[StartPicod]:
    """Start PicoDs with configurations of the test's own; `prefix` is an argv in front of it."""
    with ExitStack() as stack:

        def start(*, prefix: tuple[str, ...] = (), bound: bool = True, **config: Any) -> PicoD:
            return _start(stack, keys, prefix, bound, config)

        yield start


@pytest.fixture
def picod(start_picod: StartPicod) -> PicoD:
    """A bound PicoD; as root its user is uid 1000."""
    return start_picod()


@pytest.fixture(params=["drop", "single"])
def picod_both(request: pytest.FixtureRequest, start_picod: StartPicod) -> PicoD:
    """As root: with a user of its own, and with one uid for all. Else only the latter."""
    if request.param == "drop" and not ROOT:
        pytest.skip("dropping to another uid needs root")
    return start_picod(single_uid=request.param == "single")


@dataclass
class Folder:
    """A directory of a test's own in a workspace that the tests of a module share."""

    picod: PicoD
    name: str

    @property
    def path(self) -> Path:
        """Where it is on disk."""
        return self.picod.workspace / self.name

    def __truediv__(self, below: str) -> str:
        """The path of something in it, as callers write it."""
        return f"{self.name}/{below}"

    def shell(self, script: str) -> str:
        """What a program in it writes; it must succeed."""
        result = self.picod.shell(script, working_dir=self.name)
        assert result["exit_code"] == 0, result
        return str(result["stdout"])

    def get(self, target: str, **headers: str) -> Answer:
        """GET below /api, `{}` standing for this folder."""
        return self.picod.call("GET", "/api/" + target.format(self.name), headers=headers)

    def post(self, call: str, **body: Any) -> Answer:
        """POST /api/fs/..., paths as they are."""
        return self.picod.call("POST", f"/api/fs/{call}", body)

    def put(self, below: str, content: bytes, query: str = "") -> Answer:
        """PUT a file in here."""
        return self.picod.call("PUT", f"/api/files/{self.name}/{below}{query and '?' + query}", content)


@pytest.fixture(scope="module")
def shared_picod(keys: Keys) -> Iterator[PicoD]:
    """One bound PicoD for a module's tests, its workspace in memory where there is some."""
    memory = "/dev/shm"
    found = os.statvfs(memory) if os.access(memory, os.W_OK) else None
    roomy = found is not None and found.f_bavail * found.f_frsize > 1 << 30
    with ExitStack() as stack:
        yield _start(stack, keys, (), True, {}, memory if roomy else None)


@pytest.fixture
def folder(shared_picod: PicoD) -> Folder:
    """An empty directory that belongs to the user."""
    name = f"t-{os.urandom(6).hex()}"
    assert shared_picod.call("POST", "/api/fs/mkdir", {"path": name}).status == 201
    return Folder(shared_picod, name)


def _start(
    stack: ExitStack,
    keys: Keys,
    prefix: tuple[str, ...],
    bound: bool,
    config: dict[str, Any],
    base: str | None = None,
) -> PicoD:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="picod-", dir=base)))
    directory.chmod(0o755)
    workspace = directory / "ws"
    workspace.mkdir()
    single = config.setdefault("single_uid", not ROOT)
    if ROOT and not single:
        os.chown(workspace, 1000, 1000)
    listener, control = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    control.bind(str(directory / "c"))
    for one in (listener, control):
        one.listen(64)
        one.set_inheritable(True)
    settings = {
        "sandbox_id": "sb-1",
        "public_keys": [keys.pem],
        "listen_fd": listener.fileno(),
        "control_fd": control.fileno(),
        "workspace": str(workspace),
        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(workspace)},
        "limits": {"memory_bytes": 1 << 30, "pids_max": 512, "mode": "cgroup"},
        "version": "test",
        **config,
    }
    (directory / "config").write_text(json.dumps(settings))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, PYTHON, "-m", "agentcube.picod", "--config", str(directory / "config")],
            pass_fds=(listener.fileno(), control.fileno()),
            cwd=SOURCES,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES)},
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    listener.close()
    control.close()
    picod = PicoD(process.pid, str(directory / "s"), str(directory / "c"), workspace, keys)
    stack.callback(_check_log, directory / "log")
    stack.callback(_kill_tree, process)
    stack.enter_context(picod.connections)
    assert picod.call("GET", "/health").status == 200
    if bound:
        assert picod.bind().status == 200
    return picod


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill PicoD and all that it left, which cannot be told from others once it is gone."""
    process.send_signal(signal.SIGSTOP)
    for pid in descendants(process.pid, with_picod=True):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.kill()
    process.wait()


def _check_log(path: Path) -> None:
    assert "Traceback" not in path.read_text(), path.read_text()


def open_files(pid: int) -> list[str]:
    """What PicoD's descriptors are. It is not dumpable: only root may look."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def running(marker: str) -> list[int]:
    """Pids of processes that are no zombies and have `marker` in their arguments."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and marker.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
        except OSError:
            continue  # it went away
    return found


def descendants(root: int, *, with_picod: bool = False) -> list[int]:
    """Pids below `root` that are not zombies, nor (unless `with_picod`) PicoD's own."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                name, _, rest = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")
                fields = rest.split()
            except OSError:
                continue
            ours = " (picod" in name
            table[int(entry)] = (int(fields[1]), "X" if ours and not with_picod else fields[0])
    found, queue = [], [root]
    while queue:
        parent = queue.pop()
        below = [pid for pid, (above, _) in table.items() if above == parent]
        queue.extend(below)
        found.extend(pid for pid in below if table[pid][1] not in "ZX")
    return found


@pytest.fixture
def peak(shared_picod: PicoD) -> Callable[[], int]:
    """The most memory, in bytes, that the module's PicoD had at once so far."""

    def look() -> int:
        lines = Path(f"/proc/{shared_picod.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    return look
