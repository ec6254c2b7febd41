"""`make test-large`: five gigabytes up and down through a real server, in constant memory of all it passes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e import harness

pytestmark = [pytest.mark.large, pytest.mark.timeout(3600)]

MIB = 1 << 20
SIZE = 5 << 30
GROWTH_MAX = 32 * MIB


def memory_of_all(server: harness.Server) -> dict[int, tuple[str, int]]:
    """Of the server's processes and the sandbox's PicoD: name, and the most memory at once in bytes.

    PicoD is process 1 of a pid namespace; so it is known from outside.
    """
    found = {}
    for proc in Path("/proc").iterdir():
        if not proc.name.isdigit():
            continue
        try:
            lines = (proc / "status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        picod = fields["Name"] == "picod" and fields.get("NSpid", "").split()[-1:] == ["1"]
        if (picod or int(proc.name) == server.process.pid) and "VmHWM" in fields:
            found[int(proc.name)] = (fields["Name"], int(fields["VmHWM"].split()[0]) << 10)
    return found


@pytest.fixture(scope="module")
def session(server: harness.Server) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {server.api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=600) as http:
        wanted = {"name": "my-interpreter", "ttl": 3600, "resources": {"workspace": 7 << 30}}
        made = http.post("/v1/sessions", json=wanted)
        assert made.status_code == 201, made.text
        http.base_url = f"{server.url}/v1/sessions/{made.json()['id']}/"
        yield http
        http.delete("")


def pieces(digest: object = None) -> Iterator[bytes]:
    """`SIZE` bytes that do not repeat."""
    block = bytes(range(256)) * 4096
    for number in range(SIZE // MIB):
        piece = number.to_bytes(8, "big") + block[8:]
        if digest is not None:
            digest.update(piece)  # type: ignore[attr-defined]
        yield piece


def rate(begin: float) -> str:
    return f"{SIZE / (time.monotonic() - begin) / 1e6:.0f} MB/s"


def test_five_gigabytes_up_and_down_in_constant_memory(
    session: httpx2.Client, server: harness.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    session.put("files/warm", content=bytes(8 * MIB)).raise_for_status()
    assert len(session.get("files/warm").content) == 8 * MIB
    before = memory_of_all(server)
    assert {name for name, _ in before.values()} >= {"picod"}
    told = []

    sent, begin = hashlib.sha256(), time.monotonic()
    answer = session.put("files/big", content=pieces(sent))
    told.append(f"put {rate(begin)}")
    assert (answer.status_code, answer.json()["size"]) == (201, SIZE)

    received, begin = hashlib.sha256(), time.monotonic()
    with session.stream("GET", "files/big") as answer:
        for piece in answer.iter_raw(MIB):
            received.update(piece)
    told.append(f"get {rate(begin)}")
    assert received.digest() == sent.digest()

    part = session.get("files/big", headers={"range": f"bytes={SIZE - 3 * MIB}-{SIZE - 3 * MIB + 7}"})
    assert int.from_bytes(part.content, "big") == SIZE // MIB - 3

    begin, size = time.monotonic(), 0
    with session.stream("GET", "fs/tar?path=") as answer:
        for piece in answer.iter_raw(MIB):
            size += len(piece)
    told.append(f"tar down {rate(begin)}")
    assert size > SIZE + 8 * MIB

    session.delete("files/big").raise_for_status()
    grown = {
        name: now - before[pid][1]
        for pid, (name, now) in memory_of_all(server).items()
        if pid in before and before[pid][0] == name
    }
    told.append(f"memory grew by { ({name: f'{by / MIB:.1f} MiB' for name, by in grown.items()}) }")
    with capsys.disabled():
        print("\n" + "\n".join(told))
    assert max(grown.values()) < GROWTH_MAX
