"""PicoD's own memory is bounded, whatever programs write and callers send: its death is the sandbox's."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.picod.conftest import PicoD, eventually

MIB = 1 << 20
BOUND = 384 * MIB  # drivers.local.cgroups.PICOD_MEMORY_BYTES


def peak(picod: PicoD) -> int:
    lines = Path(f"/proc/{picod.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("encoding", ["utf-8", "base64"])
def test_bytes_that_escape_to_six_times_their_length_do_not_fill_it(picod: PicoD, encoding: str) -> None:
    result = picod.shell("head -c 8M /dev/zero; head -c 8M /dev/zero >&2", encoding=encoding)
    if encoding == "base64":
        assert result["stdout_base64"] == result["stderr_base64"] == ("AAAA" * (8 * MIB // 3 + 1))[:-2] + "A="
    else:
        assert result["stdout"] == result["stderr"] == "\0" * (8 * MIB)
    assert not result["stdout_truncated"]
    assert peak(picod) < BOUND / 2


def test_characters_are_whole_where_an_answer_is_cut_into_pieces(picod: PicoD) -> None:
    text = "aä€😀" * 40_000
    (picod.workspace / "text").write_bytes(text.encode() + b"\xe2\x82")  # ends within a character
    assert picod.execute("cat", "text")["stdout"] == text + "\ufffd"


WAIT = "touch here-$$; while ! test -e go; do read -t 0.01 x <> /dev/null; done"


def test_many_calls_share_the_room_for_outputs(picod: PicoD) -> None:
    script = f"head -c 8M /dev/zero; head -c 8M /dev/zero >&2; {WAIT}"
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(picod.execute, "bash", "-c", script) for _ in range(8)]
        eventually(lambda: len(list(picod.workspace.glob("here-*"))) == 8)
        (picod.workspace / "go").touch()
        results = [call.result() for call in calls]
    kept = sum(len(r["stdout"]) + len(r["stderr"]) for r in results)
    assert kept <= 32 * MIB
    assert any(r["stdout_truncated"] for r in results)
    assert peak(picod) < BOUND
    assert not picod.shell("head -c 8M /dev/zero")["stdout_truncated"]  # the room is there again


def test_a_program_that_writes_two_bytes_at_a_time_costs_what_it_wrote(picod: PicoD) -> None:
    before = peak(picod)
    result = picod.execute("python3", "-c", "import os\nfor _ in range(200_000): os.write(1, b'ab')")
    assert result["stdout"] == "ab" * 200_000
    assert peak(picod) < before + 8 * MIB


def test_large_bodies_wait_for_each_other_and_small_ones_do_not(picod: PicoD) -> None:
    body = json.dumps({"command": ["bash", "-c", f"{WAIT}; wc -c"], "stdin": "x" * (20 * MIB)}).encode()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(picod.call, "POST", "/api/execute", body) for _ in range(4)]
        eventually(lambda: list(picod.workspace.glob("here-*")))
        assert picod.shell("echo small")["stdout"] == "small\n"
        assert len(list(picod.workspace.glob("here-*"))) == 1
        (picod.workspace / "go").touch()
        assert {call.result().json()["stdout"].strip() for call in calls} == {str(20 * MIB)}
    assert peak(picod) < BOUND


def test_a_refused_body_makes_room_again(picod: PicoD) -> None:
    for _ in range(3):
        assert picod.call("POST", "/api/execute", b"[" + b"1," * (10 * MIB) + b"1]").status == 400
    connection = picod.raw()
    connection.sendall(
        b"POST /api/execute HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\nx"
        % (picod.token.encode(), 30 * MIB)
    )
    connection.close()  # in the middle of it
    body = json.dumps({"command": ["wc", "-c"], "stdin": "x" * (30 * MIB)}).encode()
    assert picod.call("POST", "/api/execute", body).status == 200


def test_what_many_processes_wrote_shares_its_room(picod: PicoD) -> None:
    before = peak(picod)
    ids = [picod.start(shell="head -c 1M /dev/zero; head -c 1M /dev/zero >&2") for _ in range(60)]
    for id in ids:
        assert picod.call("GET", f"/api/processes/{id}/wait").json()["exit_code"] == 0
    kept = [picod.process(id)[name] for id in ids for name in ("stdout", "stderr")]
    assert {one["end"] for one in kept} == {MIB}
    assert 48 * MIB < sum(one["end"] - one["start"] for one in kept) <= 64 * MIB
    assert kept[-1]["start"] == 0, "the oldest go first"
    assert peak(picod) < before + 80 * MIB


def test_input_that_a_program_has_not_read_yet_takes_room_from_others(picod: PicoD) -> None:
    body = {"command": ["sleep", "1000"], "input": "x" * (20 * MIB), "background": True}
    first = picod.call("POST", "/api/processes", body)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(picod.call, "POST", "/api/processes", body)
        assert picod.shell("sleep 0.1; echo small")["stdout"] == "small\n"
        assert not second.done()
        assert picod.call("DELETE", f"/api/processes/{first.json()['id']}").status == 204
        assert second.result().status == 201
    assert peak(picod) < BOUND
