"""Interrupts, timeouts, crashes, restarts: what ends, and what is told of it."""

from __future__ import annotations

import pytest
from tests.integration.picod.conftest import PicoD, descendants, eventually

from .kernel import Kernel, error_of, text_of


def test_an_interrupt_leaves_the_state(kernel: Kernel) -> None:
    kernel.run("import time")
    for sleep in ("while True: done += 1", "time.sleep(60)", "await __import__('asyncio').sleep(60)"):
        code = f"done = 5; print('here')\n{sleep}"
        with kernel.picod.streaming("POST", kernel.path + "/execute", {"code": code}) as stream:
            execution = stream.until("start")["execution"]
            stream.until("stdout")
            told = kernel.picod.call("POST", kernel.path + "/interrupt", {"execution": execution}).json()
            assert told["state"] == "idle"
            events = list(stream)
        assert (events[-1]["status"], events[-1]["state_lost"]) == ("interrupted", False)
        assert error_of(events)["name"] == "KeyboardInterrupt"
    assert kernel.value("done") == "5"


def test_an_interrupt_needs_no_body(kernel: Kernel) -> None:
    answer = kernel.picod.call("POST", kernel.path + "/interrupt")
    assert (answer.status, answer.json()["state"]) == (200, "idle")


def test_an_interrupt_of_another_execution_does_nothing(kernel: Kernel) -> None:
    old = kernel.run("1")[0]["execution"]
    body = {"code": "import os, time\nwhile not os.path.exists('go'): time.sleep(0.005)"}
    with kernel.picod.streaming("POST", kernel.path + "/execute", body) as stream:
        stream.until("start")
        told = kernel.picod.call("POST", kernel.path + "/interrupt", {"execution": old})
        assert told.json()["state"] == "busy"
        (kernel.picod.workspace / "go").touch()
        assert stream.until("end")["status"] == "ok"


def test_a_timeout_interrupts(kernel: Kernel) -> None:
    events = kernel.run("import time; kept = 1; time.sleep(60)", timeout="100ms")
    assert (events[-1]["status"], events[-1]["state_lost"]) == ("timed_out", False)
    assert kernel.value("kept") == "1"


@pytest.mark.parametrize("timeout", [True, False])
def test_a_cell_that_resists_is_killed_with_its_kernel(picod: PicoD, timeout: bool) -> None:
    kernel = Kernel(picod)
    code = (
        "import time\nwhile True:\n    try:\n        print('here'); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        pass"
    )
    if timeout:
        events = kernel.run(code, timeout="500ms", interrupt_grace="500ms")
    else:
        with picod.streaming("POST", kernel.path + "/execute", {"code": code}) as stream:
            stream.until("stdout")
            interrupted = picod.call("POST", kernel.path + "/interrupt", {"grace": "500ms"})
            assert interrupted.json()["state"] == "dead"
            events = list(stream)
    assert events[-1]["status"] == ("timed_out" if timeout else "kernel_died")
    assert events[-1]["state_lost"] is True
    assert events[-1]["reason"] == "it did not stop within 500ms of the interrupt"
    assert kernel.get()["state"] == "dead"
    assert picod.call("POST", kernel.path + "/execute", {"code": "1"}).json()["code"] == "kernel_dead"
    picod.call("DELETE", kernel.path)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "it was killed by SIGSEGV (a segmentation fault)"),
        ("import os; os.abort()", "it was killed by SIGABRT (abort())"),
        ("import os; os._exit(4)", "it ended with exit code 4"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by SIGKILL"),
    ],
)
def test_a_crash_is_told_and_harms_nobody(picod: PicoD, kernel: Kernel, code: str, reason: str) -> None:
    victim = Kernel(picod)
    events = victim.run(f"print('before'); {code}")
    assert text_of(events) == "before\n"
    assert (events[-1]["status"], events[-1]["state_lost"]) == ("kernel_died", True)
    assert events[-1]["reason"] == reason
    assert victim.get()["reason"] == reason
    assert kernel.value("1 + 1") == "2"
    restarted = picod.call("POST", victim.path + "/restart").json()
    assert (restarted["state"], restarted["execution_count"]) == ("idle", 0)
    assert victim.value("'again'") == "'again'"
    picod.call("DELETE", victim.path)


def test_a_kernel_that_dies_between_cells_is_dead(picod: PicoD) -> None:
    kernel = Kernel(picod)
    kernel.run("import os, threading\nthreading.Timer(0.05, os._exit, [9]).start()")
    assert eventually(lambda: kernel.get()["state"] == "dead")
    assert kernel.get()["reason"] == "it ended with exit code 9"
    picod.call("DELETE", kernel.path)


def test_restart_and_delete_end_what_runs(picod: PicoD) -> None:
    kernel = Kernel(picod, env={"MARK": "kept"})
    kernel.run("gone = 1")
    for method, path, reason in (
        ("POST", kernel.path + "/restart", "the kernel was restarted"),
        ("DELETE", kernel.path, "the kernel was deleted"),
    ):
        with picod.streaming(
            "POST", kernel.path + "/execute", {"code": "import time; time.sleep(60)"}
        ) as stream:
            stream.until("start")
            assert picod.call(method, path).status in (200, 204)
            end = list(stream)[-1]
        assert (end["event"], end["status"], end["reason"]) == ("end", "kernel_died", reason)
        if method == "POST":
            assert kernel.value("'gone' in globals(), __import__('os').environ['MARK']") == "(False, 'kept')"
    assert picod.call("GET", kernel.path).json()["code"] == "kernel_not_found"
    assert picod.call("DELETE", kernel.path).status == 404


@pytest.mark.parametrize("crashed", [False, True])
def test_all_that_a_kernel_started_dies_with_it_daemons_too(picod: PicoD, crashed: bool) -> None:
    others = set(descendants(picod.pid))
    for language, code, end in (
        (
            "python",
            "!sleep 301 & setsid -f sleep 302; (nohup sleep 303 >/dev/null 2>&1 &)",
            "import os; os._exit(1)",
        ),
        ("bash", "sleep 301 & setsid -f sleep 302; (nohup sleep 303 >/dev/null 2>&1 &)", "exit 1"),
    ):
        kernel = Kernel(picod, language=language)
        kernel.run(code)
        assert eventually(lambda: len(set(descendants(picod.pid)) - others) == 4)
        if crashed:
            assert kernel.run(end)[-1]["status"] == "kernel_died"
            assert len(set(descendants(picod.pid)) - others) == 3
        picod.call("DELETE", kernel.path)
        assert not set(descendants(picod.pid)) - others
