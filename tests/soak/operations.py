"""What one session of the soak does, and what must come of it. Pure: the same seed gives the same operations.

A `Script` draws operations and keeps what the workspace and the kernel must hold after each; nothing here talks
to a server.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

PATTERN_BYTES = 1 << 20
LARGE_BYTES = 3 << 20
FILES_MAX = 40
SIGNALS = {"SIGTERM": 15, "SIGINT": 2, "SIGKILL": 9, "SIGUSR1": 10}


def content(seed: int, size: int) -> bytes:
    """Bytes that nothing else has."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of the pattern file."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Emit:
    """A program that writes parts of the pattern to its two streams, and ends with a code."""

    out: Part
    err: Part
    code: int
    background: bool


@dataclass(frozen=True, slots=True)
class Echo:
    """A program that gives back what it reads: written in pieces while it runs."""

    seed: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signalled:
    """A program that sleeps until it gets a signal."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal that is resized, and whose program says its size."""

    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class Write:
    """A whole file."""

    path: str
    seed: int
    size: int


@dataclass(frozen=True, slots=True)
class Append:
    """More at the end of a file that has `at` bytes."""

    path: str
    at: int
    seed: int
    size: int


@dataclass(frozen=True, slots=True)
class Read:
    """A file, or some of it."""

    path: str
    start: int
    size: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """A file under another name."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A file twice."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Delete:
    """A file less."""

    path: str


@dataclass(frozen=True, slots=True)
class List:
    """All names and sizes."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory up as a tar stream, down again, and away."""

    name: str
    seed: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """A cell that adds one to the kernel's counter and says it: run twice, it would show."""

    value: int
    lines: int


@dataclass(frozen=True, slots=True)
class BashCount:
    """The same in a kernel that speaks bash."""

    value: int


@dataclass(frozen=True, slots=True)
class TooSlow:
    """A cell that its timeout strikes."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A cell that fails."""

    number: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A cell that waits until it is interrupted."""


Operation = (
    Emit
    | Echo
    | Signalled
    | Terminal
    | Write
    | Append
    | Read
    | Move
    | Copy
    | Delete
    | List
    | Tree
    | Count
    | BashCount
    | TooSlow
    | Mistake
    | Interrupted
)

_WEIGHTS = {
    "emit": 22,
    "echo": 8,
    "signalled": 4,
    "terminal": 3,
    "write": 14,
    "append": 8,
    "read": 12,
    "move": 4,
    "copy": 4,
    "delete": 5,
    "list": 3,
    "tree": 2,
    "count": 16,
    "bash_count": 4,
    "too_slow": 1,
    "mistake": 3,
    "interrupted": 1,
}


@dataclass
class Script:
    """The operations of one session. `files` and counters: what must be there when all drawn so far are done."""

    seed: str
    files: dict[str, bytes] = field(default_factory=dict)
    counter: int = 0
    bash_counter: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._number = 0
        self.pattern = content(self._random.getrandbits(64), PATTERN_BYTES)

    def draw(self, count: int) -> Iterator[Operation]:
        """The next operations, each to be done before the following one is drawn."""
        kinds = self._random.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=count)
        for kind in kinds:
            self._number += 1
            yield getattr(self, f"_{kind}")()

    def part(self, part: Part) -> bytes:
        """The bytes of a part."""
        return self.pattern[part.start : part.start + part.size]

    def _size(self) -> int:
        """Mostly small, sometimes large enough to be cut on the way."""
        return int(
            self._random.choice([0, 1, 100, 4_000, 4_000, 70_000, 70_000, 600_000]) * self._random.random()
        )

    def _some_part(self) -> Part:
        size = self._size()
        return Part(self._random.randrange(PATTERN_BYTES - size), size)

    def _emit(self) -> Operation:
        code = self._random.choice([0, 0, 0, 1, 7, 255])
        return Emit(self._some_part(), self._some_part(), code, self._random.random() < 0.4)

    def _echo(self) -> Operation:
        sizes = tuple(self._size() + 1 for _ in range(self._random.randint(1, 4)))
        return Echo(self._random.getrandbits(64), sizes)

    def _signalled(self) -> Operation:
        return Signalled(self._random.choice(list(SIGNALS)))

    def _terminal(self) -> Operation:
        return Terminal(self._random.randint(1, 500), self._random.randint(1, 200))

    def _new_name(self) -> str:
        folder = self._random.choice(["", "", "a/", "a/b/", "ü/"])
        return f"work/{folder}file-{self._number}"

    def _known(self) -> str | None:
        return self._random.choice(sorted(self.files)) if self.files else None

    def _write(self) -> Operation:
        known = self._known()
        path = (
            known
            if known and (len(self.files) >= FILES_MAX or self._random.random() < 0.3)
            else self._new_name()
        )
        size = self._random.randrange(LARGE_BYTES) if self._random.random() < 0.03 else self._size()
        made = Write(path, self._random.getrandbits(64), size)
        self.files[path] = content(made.seed, size)
        return made

    def _append(self) -> Operation:
        path = self._known()
        if path is None or len(self.files[path]) > LARGE_BYTES:
            return self._write()
        made = Append(path, len(self.files[path]), self._random.getrandbits(64), self._size())
        self.files[path] += content(made.seed, made.size)
        return made

    def _read(self) -> Operation:
        path = self._known()
        if path is None:
            return self._write()
        size = len(self.files[path])
        if self._random.random() < 0.5 or size == 0:
            return Read(path, 0, None)
        start = self._random.randrange(size)
        return Read(path, start, self._random.randint(1, size - start))

    def _move(self) -> Operation:
        source = self._known()
        if source is None:
            return self._write()
        made = Move(source, self._new_name())
        self.files[made.target] = self.files.pop(source)
        return made

    def _copy(self) -> Operation:
        source = self._known()
        if source is None or len(self.files) >= FILES_MAX:
            return self._read()
        made = Copy(source, self._new_name())
        self.files[made.target] = self.files[source]
        return made

    def _delete(self) -> Operation:
        path = self._known()
        if path is None:
            return self._write()
        del self.files[path]
        return Delete(path)

    def _list(self) -> Operation:
        return List()

    def _tree(self) -> Operation:
        sizes = tuple(self._size() for _ in range(self._random.randint(1, 8)))
        return Tree(f"tree-{self._number}", self._random.getrandbits(64), sizes)

    def _count(self) -> Operation:
        self.counter += 1
        return Count(self.counter, self._random.choice([0, 1, 10, 10, 3000]))

    def _bash_count(self) -> Operation:
        self.bash_counter += 1
        return BashCount(self.bash_counter)

    def _too_slow(self) -> Operation:
        return TooSlow()

    def _mistake(self) -> Operation:
        return Mistake(self._random.randrange(1000))

    def _interrupted(self) -> Operation:
        return Interrupted()
