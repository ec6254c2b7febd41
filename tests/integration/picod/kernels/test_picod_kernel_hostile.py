"""Cells that do to a kernel's host, and to PicoD, what they can: it ends that kernel at most."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.integration.picod.conftest import ROOT, Keys, PicoD, open_files

from .kernel import Kernel, data_of, error_of, running, text_of

CHANNEL = (
    "import gc, socket, os\n"
    "links = [one for one in gc.get_objects() if isinstance(one, socket.socket)]\n"
    "fd = next(one for one in links if one.type == socket.SOCK_SEQPACKET).fileno()\n"
)


@pytest.fixture(scope="module")
def bystander(picod: PicoD) -> Kernel:
    kernel = Kernel(picod)
    kernel.run("calm = 1")
    return kernel


@pytest.fixture
def kernel(picod: PicoD) -> Iterator[Kernel]:
    kernel = Kernel(picod)
    yield kernel
    picod.call("DELETE", kernel.path)


@pytest.fixture(autouse=True)
def unharmed(bystander: Kernel) -> Iterator[None]:
    yield
    assert bystander.value("calm") == "1"


@pytest.mark.parametrize(
    "packet",
    [
        "b'\\x03nonsense'",
        "b'\\x03' + (1 << 20).to_bytes(4, 'big') + b'{}'",
        "b'\\x03\\0\\0\\0\\x02[]'",
        'b\'\\x03\' + message(b\'{"op": "ready", "blobs": []}\')',
        'b\'\\x03\' + message(b\'{"op": "dance", "blobs": []}\')',
        'b\'\\x03\' + message(b\'{"op": "end", "blobs": [], "ok": 1}\')',
        'b\'\\x03\' + message(b\'{"op": "event", "blobs": [], "n": -1}\')',
        'b\'\\x03\' + message(b\'{"op": "event", "n": 1, "event": "exit", "blobs": []}\')',
        'b\'\\x03\' + message(b\'{"op": "event", "n": 1, "event": "display_data", "metadata": {}, '
        '"blobs": [["a/b", "base64", 3]]}\', b\'*+*\')',
        'b\'\\x03\' + message(b\'{"op": "event", "n": 1, "event": "display_data", "metadata": {}, '
        '"blobs": [["a/b", "json", 3]]}\', b\'NaN\')',
        'b\'\\x03\' + message(b\'{"op": "event", "n": 1, "event": "display_data", "metadata": {}, '
        '"blobs": [["a/b", "json", 9000]]}\', b\'[\' * 9000)',
        'b\'\\x03\' + message(b\'{"op": "event", "n": 1, "event": "display_data", "metadata": {}, '
        '"blobs": [["a/b", "text", 3]]}\', b\'abcd\')',
        "b'\\x00'",
        "b'\\x01' + b'x' * 40000",
    ],
)
def test_nonsense_on_the_channel_ends_the_kernel(kernel: Kernel, packet: str) -> None:
    code = (
        CHANNEL
        + "def message(header, content=b''): return len(header).to_bytes(4, 'big') + header + content\n"
        f"os.write(fd, {packet})\nimport time; time.sleep(60)"
    )
    end = kernel.run(code)[-1]
    assert (end["status"], end["state_lost"]) == ("kernel_died", True)
    assert end["reason"].startswith("it wrote nonsense on its channel")


def test_an_endless_message_ends_the_kernel(kernel: Kernel) -> None:
    code = CHANNEL + "os.write(fd, b'\\x01')\nwhile True: os.write(fd, b'\\0' + b'x' * 30000)"
    end = kernel.run(code)[-1]
    assert end["reason"] == "it wrote nonsense on its channel (a message too long)"


def test_a_large_message_that_never_ends_keeps_nobody_waiting_for_ever(
    kernel: Kernel, bystander: Kernel
) -> None:
    code = (
        CHANNEL + "os.write(fd, b'\\x01')\nfor _ in range(20): os.write(fd, b'\\0' + b'x' * 30000)\n"
        "import time; time.sleep(0.2)"
    )
    kernel.run(code)
    (data,) = data_of(bystander.run("display('y' * (1 << 20))"))
    assert len(data["text/plain"]) == (1 << 20) + 2


@pytest.mark.parametrize("code", ["os.close(fd)", "os.dup2(os.open('/dev/null', 1), fd)"])
def test_a_closed_channel_ends_the_kernel(kernel: Kernel, code: str) -> None:
    end = kernel.run(CHANNEL + code)[-1]
    assert (end["status"], end["state_lost"]) == ("kernel_died", True)


def test_code_that_closes_all_descriptors_as_daemons_do_harms_nothing(kernel: Kernel) -> None:
    assert kernel.run("import os; os.closerange(3, 256)")[-1]["status"] == "ok"
    assert kernel.value("1") == "1"


def test_who_closes_stdout_has_none_and_no_more(kernel: Kernel) -> None:
    events = kernel.run("import os; os.close(1); print('x')")
    assert error_of(events)["name"] == "OSError"
    assert kernel.value("2") == "2"


def test_descriptors_sent_to_picod_find_no_room(kernel: Kernel, picod: PicoD) -> None:
    code = (
        CHANNEL + "import array\nlink = socket.socket(fileno=os.dup(fd))\n"
        "rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 20))\n"
        'header = b\'{"op": "event", "n": 1, "event": "clear_output", "wait": true, "blobs": []}\'\n'
        "for _ in range(20):\n    link.sendmsg([b'\\x03' + len(header).to_bytes(4, 'big') + header], [rights])\n"
    )
    before = len(open_files(picod.pid)) if ROOT else 0
    events = kernel.run(code)
    assert sum(event["event"] == "clear_output" for event in events) == 20
    assert not ROOT or len(open_files(picod.pid)) <= before + 1


def test_forked_children_neither_end_the_cell_nor_speak_for_it(kernel: Kernel) -> None:
    code = (
        "import os, time\npid = os.fork()\n"
        "if pid == 0:\n    display('child'); time.sleep(0.05)\nelse:\n    print(os.waitpid(pid, 0)[1])\n'both'"
    )
    events = kernel.run(code)
    assert sorted(text_of(events).splitlines()) == ["'both'", "'child'", "0"]
    assert data_of(events, "execute_result") == [{"text/plain": "'both'"}]
    assert (
        kernel.run("import os\nif os.fork() == 0: time.sleep(60)\nelse: print('parent')")[-1]["status"]
        == "ok"
    )
    assert kernel.value("os.getpid()") == str(kernel.made["pid"])


def test_a_childs_packets_do_not_count(kernel: Kernel) -> None:
    code = (
        CHANNEL + "copy = os.dup(fd)\npid = os.fork()\n"
        "if pid == 0:\n    os.write(copy, b'\\x03nonsense'); os._exit(0)\nos.waitpid(pid, 0)[1]"
    )
    assert kernel.value(code) == "0"


def test_multiprocessing_works(kernel: Kernel) -> None:
    kernel.run("import multiprocessing\ndef square(n): return n * n")
    code = "with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(square, range(4)))"
    assert kernel.out(code) == "[0, 1, 4, 9]\n"


@pytest.mark.parametrize(
    "code",
    [
        "import builtins\nfor name in ('len', 'isinstance', 'dict', 'str', 'range'): setattr(builtins, name, None)",
        "import sys\nfor name in list(sys.modules): del sys.modules[name]",
        "import json, os, socket, signal\njson.dumps = json.loads = None",
        "import sys; sys.stdout = sys.stderr = None",
        "import sys\nclass Bad:\n    def write(self, text): raise ValueError\n    flush = write\nsys.stdout = Bad()",
        "import sys; sys.setrecursionlimit(60)",
        "import sys; sys.excepthook = sys.displayhook = None",
        "import signal\nfor n in (2, 15, 17): signal.signal(n, signal.SIG_IGN)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "import gc; gc.disable()",
        "globals().clear()",
        "import os\ntry: os.setsid()\nexcept OSError: pass",
        "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(9,)).start()",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))",
        "import asyncio; asyncio.get_event_loop_policy(); asyncio.sleep = None",
    ],
)
def test_a_kernel_that_is_turned_inside_out_goes_on_or_dies_truthfully(kernel: Kernel, code: str) -> None:
    kernel.run(code)
    events = kernel.run("1 + 1")
    assert data_of(events, "execute_result") == [{"text/plain": "2"}], events
    interrupted = kernel.run("while True: pass", timeout="100ms", interrupt_grace="10s")
    assert interrupted[-1]["status"] == "timed_out"
    assert interrupted[-1]["state_lost"] is False


def test_exceptions_of_signal_handlers_and_tasks_between_cells_end_nothing(kernel: Kernel) -> None:
    kernel.run(
        "import signal, time\ndef ring(*_): raise TimeoutError('ring')\n"
        "signal.signal(signal.SIGALRM, ring); signal.setitimer(signal.ITIMER_REAL, 0.02)"
    )
    kernel.run(
        "import asyncio\nasync def bad(): raise ValueError\ntask = asyncio.ensure_future(bad()); await asyncio.sleep(0)"
    )
    error = error_of(kernel.run("signal.setitimer(signal.ITIMER_REAL, 0.02); time.sleep(60)"))
    assert (error["name"], error["value"]) == ("TimeoutError", "ring")
    assert kernel.value("3") == "3"


def test_an_endless_recursion_is_an_error_or_a_crash(kernel: Kernel) -> None:
    assert error_of(kernel.run("def f(): f()\nf()"))["name"] == "RecursionError"
    deep = "import sys; sys.setrecursionlimit(10**8)\ndef f(x): return list(map(f, [x]))\nf(0)"
    assert kernel.run(deep)[-1]["status"] in ("kernel_died", "error")


def test_exceptions_that_cannot_be_shown_are_shown_somehow(kernel: Kernel) -> None:
    code = "class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad"
    assert error_of(kernel.run(code))["name"] == "Bad"
    code = "class Worse:\n    def __repr__(self): raise KeyError('no repr')\nWorse()"
    assert error_of(kernel.run(code))["name"] == "KeyError"
    (error,) = [error_of(kernel.run("raise Exception('x' * (40 << 20))"))]
    assert len(error["value"]) < 3 << 20


def test_a_cell_that_writes_without_end_costs_its_bounds(kernel: Kernel, picod: PicoD) -> None:
    before = resident(picod.pid)
    with picod.streaming(
        "POST",
        kernel.path + "/execute",
        {"code": "import os\nblock = b'x' * (1 << 20)\nfor _ in range(96): os.write(1, block)"},
    ) as stream:
        total, highest = 0, 0
        for event in stream:
            total += len(event.get("text", ""))
            highest = (
                max(highest, resident(picod.pid))
                if event["event"] == "stdout" and event["seq"] % 64 == 0
                else highest
            )
    assert total == 96 << 20
    assert highest - before < 24 << 20


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_who_does_not_read_holds_up_only_his_own_cell(kernel: Kernel, bystander: Kernel) -> None:
    code = "import os\nfor n in range(64): os.write(1, b'x' * (1 << 20)); open('progress', 'w').write(str(n))"
    with kernel.picod.streaming("POST", kernel.path + "/execute", {"code": code}) as stream:
        stream.until("stdout")
        assert bystander.value("calm") == "1"
        progress = kernel.picod.workspace / "progress"
        assert not progress.exists() or int(progress.read_text() or 0) < 40
        assert kernel.get()["state"] == "busy"


def test_the_meter_tells_whom_it_has_killed(keys: Keys) -> None:
    with running(keys, limits={"memory_bytes": 200 << 20, "pids_max": 0, "mode": "rlimit"}) as picod:
        kernel = Kernel(picod)
        # Two that together have too much; each alone would be within what one process may have.
        hoard = "import time\nhoard = b'x' * (120 << 20)"
        child = f'{hoard}\nprint("full", flush=True)\ntime.sleep(60)'
        code = f"import subprocess, sys\n{hoard}\nprint(subprocess.call([sys.executable, '-c', {child!r}]))"
        events = kernel.run(code)
        told = text_of(events, "stderr") + events[-1].get("reason", "")
        assert "over the sandbox's memory limit" in told, events
        if events[-1]["status"] == "ok":
            assert "-9\n" in text_of(events)
        else:
            assert events[-1]["status"] == "kernel_died"
