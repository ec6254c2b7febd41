"""/api/fs/watch: what happens is told, once, in order, also in directories that are new or move."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .conftest import ROOT, Folder, PicoD, _UnixConnection, eventually, open_files


class Watching:
    """One open watch, read by a thread; paths are told without the folder's name."""

    @classmethod
    def begin(cls, folder: Folder, below: str, query: str) -> Watching | None:
        """None: there are too many open."""
        connection = _UnixConnection(folder.picod.path)
        headers = {"Authorization": f"Bearer {folder.picod.token}"}
        connection.request("GET", f"/api/fs/watch?path={folder.name}{below}{query}", headers=headers)
        answer = connection.getresponse()
        if answer.status == 429:
            answer.close()
            connection.close()
            return None
        assert answer.status == 200, answer.read()
        return cls(folder, connection, answer)

    def __init__(self, folder: Folder, connection: _UnixConnection, answer: http.client.HTTPResponse) -> None:
        self._prefix = folder.name + "/"
        self._connection = connection
        self.answer = answer
        self.events: list[dict[str, Any]] = []
        self.ended = False
        assert json.loads(self.answer.readline())["event"] == "ready"
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while line := self.answer.readline():
                event = json.loads(line)
                if event["event"] != "ping":
                    self.events.append(event)
            self.ended = True
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass  # closed

    def close(self) -> None:
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._thread.join()
        self.answer.close()
        self._connection.close()

    def told(self) -> list[str]:
        """Every event in a line: kind, path with / behind a directory, what it was before."""
        lines = []
        for event in list(self.events):
            line = f"{event['event']} {event.get('path', '').removeprefix(self._prefix)}"
            line += "/" if event.get("is_dir") else ""
            lines.append(line + (f" < {event['from'].removeprefix(self._prefix)}" if "from" in event else ""))
        return lines

    def until(self, last: str) -> list[str]:
        """All that was told when `last` was, but for what is told of the mark itself."""
        eventually(lambda: last in self.told())
        return self.told()


Watch = Callable[..., Watching]


@pytest.fixture
def watch() -> Iterator[Watch]:
    with ExitStack() as stack:

        def begin(folder: Folder, below: str = "", query: str = "") -> Watching:
            # The watches of the test before end when PicoD sees that their clients are gone.
            watching = eventually(lambda: Watching.begin(folder, below, query))
            stack.callback(watching.close)
            return watching

        yield begin


def test_what_happens_in_a_directory(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir sub; echo 1 > old")
    seen = watch(folder)
    folder.shell(
        "echo 1 > new; mkdir dir; mv old older; rm older; echo 1 > sub/unseen; rmdir dir; mkdir mark"
    )
    told = seen.until("create mark/")
    assert [line for line in told if line != "modify new"] == [
        "create new",
        "create dir/",
        "rename older < old",
        "delete older",
        "delete dir/",
        "create mark/",
    ]
    seen.until("modify new")


def test_writes_are_told_when_they_happen_and_not_each(folder: Folder, watch: Watch) -> None:
    seen = watch(folder)
    folder.shell(
        "python3 -c \"import os,time; f = os.open('log', os.O_CREAT | os.O_WRONLY)\n"
        "for i in range(2000): os.write(f, b'x')\nos.mkfifo('wait'); open('wait').read()\" & "
        "while ! test -e wait; do :; done; wc -c < log"
    )
    eventually(lambda: "modify log" in seen.told())  # while it is open still
    before = seen.told().count("modify log")
    assert before < 40
    folder.shell("echo > wait")
    eventually(lambda: seen.told().count("modify log") > before or before > 1)


def test_a_whole_tree_and_directories_that_are_new(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir -p a/b/c")
    seen = watch(folder, "", "&recursive=true")
    folder.shell(
        "echo x > a/b/c/f; mkdir -p n/e/w; echo 1 > n/e/w/f; mkdir n/e/w/x; : > n/e/w/x/empty; mkdir mark"
    )
    told = seen.until("create mark/")
    created = [line.removeprefix("create ") for line in told if line.startswith("create")]
    assert (created[0], created[-1]) == ("a/b/c/f", "mark/")
    # What was found in a new directory comes in no order, but for a directory before what is in it.
    assert sorted(created[1:-1]) == ["n/", "n/e/", "n/e/w/", "n/e/w/f", "n/e/w/x/", "n/e/w/x/empty"]
    assert created.index("n/e/w/") < created.index("n/e/w/x/") < created.index("n/e/w/x/empty")
    eventually(lambda: "modify n/e/w/f" in seen.told())


def test_directories_take_their_watch_along(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir -p a/in out")
    seen = watch(folder, "", "&recursive=true")
    folder.shell("mv a b; echo 1 > b/in/f; mkdir -p deep/er")
    seen.until("create deep/er/")
    folder.shell(
        "mv b deep/er/b; : > deep/er/b/in/g; mv deep/er/b/in/g g;"
        "mv deep/er/b c; : > c/in/h; rm -r c; mkdir mark"
    )
    told = [line for line in seen.until("create mark/") if not line.startswith("modify")]
    assert told == [
        "rename b/ < a",
        "create b/in/f",
        "create deep/",
        "create deep/er/",
        "rename deep/er/b/ < b",
        "create deep/er/b/in/g",
        "rename g < deep/er/b/in/g",
        "rename c/ < deep/er/b",
        "create c/in/h",
        *sorted(["delete c/in/f", "delete c/in/h"], key=told.index),
        "delete c/in/",
        "delete c/",
        "create mark/",
    ]


def test_what_comes_from_outside_and_goes_there(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir -p w/d/e o/tree/sub; echo 1 > o/tree/sub/f; echo 2 > o/file; : > w/d/f")
    seen = watch(folder, "/w", "&recursive=true")
    folder.shell("mv o/tree w/t")
    seen.until("create w/t/sub/f")
    folder.shell("mv o/file w/; mv w/d o/; : > o/d/e/unseen; : > w/t/sub/g; mkdir w/mark")
    told = [line.replace("w/", "", 1) for line in seen.until("create w/mark/")]
    assert [line for line in told if not line.startswith("modify")] == [
        "create t/",
        "create t/sub/",
        "create t/sub/f",
        "create file",
        "delete d/",
        "create t/sub/g",
        "create mark/",
    ]
    eventually(lambda: {"modify w/t/sub/f", "modify w/file"} <= set(seen.told()))


def test_uploads_look_like_files_that_are_written_at_once(folder: Folder, watch: Watch) -> None:
    folder.put("old", b"1")
    folder.shell("mkdir -p d/sub; : > d/sub/f")
    seen = watch(folder, "", "&recursive=true")
    folder.put("new", b"2")
    folder.put("old", b"3")
    folder.post("copy", source=folder / "d", destination=folder / "e")
    seen.until("create e/sub/f")
    folder.picod.call("DELETE", f"/api/files/{folder / 'e'}?recursive=true")
    folder.shell("mkdir mark")
    told = seen.until("create mark/")
    assert not [line for line in told if ".agentcube" in line]
    assert [line for line in told if not line.startswith("modify")] == [
        "create new",
        "create e/",
        "create e/sub/",
        "create e/sub/f",
        "delete e/sub/f",
        "delete e/sub/",
        "delete e/",
        "create mark/",
    ]
    eventually(lambda: {"modify new", "modify old"} <= set(seen.told()))


def test_every_file_that_is_made_fast_in_new_directories_is_told_once(folder: Folder, watch: Watch) -> None:
    """Directories are filled while they are still being found, by several programs at once."""
    seen = watch(folder, "", "&recursive=true")
    script = (
        "import os\nfor i in range(60):\n d = f'{w}-{i}/x/y'\n os.makedirs(d)\n"
        " for j in range(5): open(f'{d}/{j}', 'w').close()\n"
        " os.rename(f'{w}-{i}', f'{w}+{i}')\n open(f'{w}+{i}/x/y/after', 'w').close()"
    )
    folder.shell("".join(f"python3 -c \"w='w{n}'\n{script}\" & " for n in range(3)) + "wait; mkdir mark")
    seen.until("create mark/")
    told = [event["path"] for event in seen.events if event["event"] == "create"]
    assert len(told) == len(set(told))
    assert copied(seen.events) == real(folder)
    assert len(real(folder)) == 3 * 60 * 9 + 1


def copied(events: list[dict[str, Any]]) -> dict[str, bool]:
    """What a client has in the end that keeps a copy of an empty directory: paths, and whether it is a directory."""
    have: dict[str, bool] = {}

    def taken(path: str) -> dict[str, bool]:
        below = {p: have.pop(p) for p in list(have) if p == path or p.startswith(path + "/")}
        return {p[len(path) :]: is_dir for p, is_dir in below.items()}

    for event in events:
        path, is_dir = event.get("path", ""), event.get("is_dir", False)
        assert event["event"] != "overflow"
        if event["event"] == "delete" or have.get(path) == (not is_dir):
            taken(path)
        if event["event"] == "rename":
            below = taken(event["from"])
            taken(path)
            have.update({path + p: was for p, was in below.items()})
        if event["event"] in ("create", "rename"):
            have[path] = is_dir
    return have


def real(folder: Folder, below: str = "") -> dict[str, bool]:
    """What there is, as `copied` has it."""
    return {
        os.path.relpath(os.path.join(where, name), folder.picod.workspace): name in dirs
        for where, dirs, files in os.walk(folder.path / below)
        for name in dirs + files
    }


@pytest.mark.parametrize(
    "script",
    [
        "mkdir d; : > d/1; mv d e; mkdir d; : > d/2",
        "mkdir -p a/1 b; mv a b; mkdir -p a/2; mv b/a b/c; mv a b; mkdir a",
        "mkdir -p d/x; : > d/x/f; mv d/x ../o/x; rmdir d; mv ../o/x d; mkdir d/x",
        "mkdir -p d/e/f; mv d ../o/d; mv ../o/d/e d; mkdir d/g; mv ../o/d d/f/d",
        "mkdir a; mv a b; : > a; mkdir c; mv c a2; mv a c; mv b a",
        "mkdir -p x/y; mv x/y y; mv x y; mkdir x; mv y/x x; : > x/x/f",
    ],
)
def test_a_copy_is_right_when_all_was_over_before_picod_looked(
    folder: Folder, watch: Watch, script: str
) -> None:
    folder.shell("mkdir w o")
    seen = watch(folder, "/w", "&recursive=true")
    os.kill(folder.picod.pid, 19)  # SIGSTOP
    try:
        subprocess.run(["sh", "-ec", script], cwd=folder.path / "w", check=True)
    finally:
        os.kill(folder.picod.pid, 18)
    eventually(lambda: copied(seen.events) == real(folder, "w"))


def test_exchanged_names_are_all_there(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir w o")
    seen, shallow = watch(folder, "/w", "&recursive=true"), watch(folder, "/w")
    folder.shell("mkdir -p w/a/1 w/b/2 w/c/c o/d/3; : > w/e; : > w/f; : > w/c/g; mkdir w/mark")
    eventually(lambda: copied(seen.events) == real(folder, "w"))
    for one, other in (("w/a", "w/b"), ("w/e", "w/f"), ("w/f", "w/c"), ("w/a", "o/d"), ("w/f/c", "w/b")):
        exchange = f'import ctypes; print(ctypes.CDLL(None).renameat2(-100, b"{one}", -100, b"{other}", 2))'
        assert folder.shell(f"python3 -c '{exchange}'") == "0\n"
        eventually(lambda: copied(seen.events) == real(folder, "w"))
        eventually(
            lambda: (
                copied(shallow.events) == {p: d for p, d in real(folder, "w").items() if p.count("/") == 2}
            )
        )


CHAOS = """
import ctypes, os, random, sys
chance = random.Random(sys.argv[1])
names = chance.choice(["ab", "abc", "abcdef"])

def inside(base="w"):
    at = base
    for _ in range(chance.randint(0, 3)):
        below = [entry.path for entry in os.scandir(at) if entry.is_dir()]
        at = chance.choice(below) if below else at
    return at

def new(base="w"):
    return inside(base) + "/" + chance.choice(names)

def old(base="w"):
    at = inside(base)
    return at if at != base else new(base)

def exchange(one, other):
    ctypes.CDLL(None).renameat2(-100, one.encode(), -100, other.encode(), 2)

acts = (
    [lambda: os.mkdir(new())] * 6
    + [lambda: os.makedirs(new() + "/a/b")]
    + [lambda: os.rename(old(), new())] * 10
    + [lambda: os.rmdir(old())] * 3
    + [lambda: open(new(), "a").close(), lambda: open(new() + "f", "a").close()] * 2
    + [lambda: os.unlink(new()), lambda: os.rename(new(), new())] * 2
    + [lambda: os.rename(old(), new("o")), lambda: os.rename(old("o"), new())] * 2
    + [lambda: os.rename(old("o"), new("o"))]
    + [lambda: exchange(old(), new()), lambda: exchange(new(), new())]
)
for _ in range(400):
    try:
        chance.choice(acts)()
    except OSError:
        pass
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_is_right_after_chaos(folder: Folder, watch: Watch, seed: int) -> None:
    """Programs make, rename, exchange and remove directories and files, and move them out and in, at once."""
    folder.shell("mkdir w o")
    (folder.path / "chaos.py").write_text(CHAOS)
    seen = watch(folder, "/w", "&recursive=true")
    folder.shell("".join(f"python3 chaos.py {seed}-{n} & " for n in range(3)) + "wait; mkdir w/mark")
    seen.until("create w/mark/")
    eventually(lambda: copied(seen.events) == real(folder, "w"))
    folder.shell("find w -type d -exec touch {}/after ';'; mkdir w/mark/2")
    seen.until("create w/mark/2/")
    eventually(lambda: copied(seen.events) == real(folder, "w"))  # no directory is out of its sight


@pytest.mark.parametrize(("name", "far"), [("n" * 240, 17), ("d", 254)], ids=["bytes", "levels"])
def test_where_no_call_can_go_a_watch_does_not_go_either(
    folder: Folder, watch: Watch, name: str, far: int
) -> None:
    """Told is the directory from which on paths are too long for everybody; nothing of what is in it."""
    folder.shell("mkdir w")
    seen = watch(folder, "/w", "&recursive=true")
    deeper = f"os.mkdir('{name}'); os.chdir('{name}')"
    program = f"import os\nos.chdir('w')\nfor _ in range({far + 9}): {deeper}\nopen('f', 'w')"
    folder.shell(f'python3 -c "{program}"; touch w/mark')
    seen.until("create w/mark")
    (told,) = [event["path"] for event in seen.events if event["event"] == "overflow"]
    assert told.split("/").count(name) == far
    assert max(len(event["path"]) for event in seen.events if "path" in event) < 4600


def test_an_overflow_is_told_and_the_watch_goes_on(folder: Folder, watch: Watch) -> None:
    seen = watch(folder, "", "&recursive=true")
    os.kill(folder.picod.pid, 19)  # SIGSTOP
    try:
        for i in range(9000):  # made by us: PicoD starts nothing now
            os.close(os.open(folder.path / f"f{i}", os.O_CREAT))
            os.unlink(folder.path / f"f{i}")
        os.makedirs(folder.path / "new/sub")
    finally:
        os.kill(folder.picod.pid, 18)
    eventually(lambda: any(event["event"] == "overflow" for event in seen.events))
    (told,) = [event for event in seen.events if event["event"] == "overflow"]
    assert told["path"] == folder.name
    (folder.path / "new/sub/f").touch()
    seen.until("create new/sub/f")


def test_a_watch_ends_when_its_directory_is_gone(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir a b")
    first, second = watch(folder, "/a"), watch(folder, "/b", "&recursive=true")
    folder.shell("rmdir a; mv b c")
    eventually(lambda: first.ended and second.ended)
    assert first.events[-1] == second.events[-1] == {"event": "end", "reason": "gone"}
    assert first.told() == ["delete a/", "end "]


def test_a_watch_ends_also_when_somebody_is_still_in_its_directory(folder: Folder, watch: Watch) -> None:
    folder.shell("mkdir a")
    seen = watch(folder, "/a")
    process = folder.picod.start(command=["sleep", "100"], working_dir=folder / "a")
    folder.picod.call("DELETE", f"/api/files/{folder / 'a'}?recursive=true")
    eventually(lambda: seen.ended, within_s=10)
    folder.picod.call("DELETE", f"/api/processes/{process}")


def test_sse_for_who_prefers_it(folder: Folder) -> None:
    answer = _UnixConnection(folder.picod.path)
    headers = {"Authorization": f"Bearer {folder.picod.token}", "Accept": "text/event-stream"}
    answer.request("GET", f"/api/fs/watch?path={folder.name}", headers=headers)
    response = answer.getresponse()
    assert response.headers["content-type"] == "text/event-stream"
    assert response.readline() == b"event: ready\n"
    answer.close()


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("path=absent", 404, "file_not_found"),
        ("path=..", 400, "invalid"),
        ("path={}/file", 400, "invalid"),
        ("path={}/fifo", 400, "invalid"),
        ("path={}&recursive=yes", 400, "invalid"),
        ("path={}&depth=1", 400, "invalid"),
        ("path={}/loop", 400, "invalid"),
    ],
)
def test_a_bad_watch_is_a_clear_problem(folder: Folder, query: str, status: int, code: str) -> None:
    folder.shell("touch file; mkfifo fifo; ln -s loop loop")
    answer = folder.get("fs/watch?" + query)
    assert (answer.status, answer.json()["code"]) == (status, code)


def test_watches_are_bounded_and_leave_nothing_behind(folder: Folder, watch: Watch) -> None:
    many = [watch(folder, "", "&recursive=true") for _ in range(8)]
    answer = folder.get("fs/watch?path={}")
    assert (answer.status, answer.json()["code"]) == (429, "limit_exceeded")
    for one in many:
        one.close()
    eventually(lambda: not _inotifies(folder.picod))
    watch(folder)


def _inotifies(picod: PicoD) -> list[str]:
    return [name for name in open_files(picod.pid) if "inotify" in name] if ROOT else []


def test_too_many_directories_are_told(folder: Folder, watch: Watch) -> None:
    folder.shell("python3 -c \"import os\nfor i in range(8300): os.mkdir(f'd{i}')\"")
    answer = folder.get("fs/watch?path={}&recursive=true")
    assert (answer.status, answer.json()["code"]) == (429, "limit_exceeded")
    assert "8192" in answer.json()["detail"]
    folder.shell("python3 -c \"import os\nfor i in range(200): os.rmdir(f'd{i}')\"")
    seen = watch(folder, "", "&recursive=true")
    folder.shell("python3 -c \"import os\nfor i in range(100): os.mkdir(f'e{i}')\"")
    eventually(lambda: [line for line in seen.told() if line.startswith("overflow e")])
    folder.shell("rm -r d*")


def test_who_does_not_read_slows_only_itself(folder: Folder, watch: Watch, peak: Callable[[], int]) -> None:
    slow = folder.picod.raw()
    head = f"GET /api/fs/watch?path={folder.name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {folder.picod.token}"
    slow.sendall(head.encode() + b"\r\n\r\n")
    assert b"ready" in slow.recv(4096) + slow.recv(4096)
    quick = watch(folder)
    names = "n" * 200
    folder.shell(
        f"python3 -c \"import os\nfor i in range(12000): os.close(os.open('{names}%d' % i, os.O_CREAT))\""
    )
    (folder.path / "mark").mkdir()
    eventually(lambda: "create mark/" in quick.told() or any(e["event"] == "overflow" for e in quick.events))
    assert peak() < 80 << 20
    slow.close()
    folder.shell("find . -name 'n*' -delete")
