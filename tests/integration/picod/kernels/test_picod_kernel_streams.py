"""Events of cells that lose their client, are asked for twice, or wait in line: nothing lost, nothing repeated."""

from __future__ import annotations

import threading
from typing import Any

from tests.integration.picod.conftest import PicoD, Stream, descendants, eventually

from .kernel import Kernel, text_of


def begin(kernel: Kernel, code: str, **more: Any) -> Any:
    return kernel.picod.streaming("POST", kernel.path + "/execute", {"code": code, **more})


def again(kernel: Kernel, execution: str, after: int) -> Any:
    return kernel.picod.streaming("GET", f"{kernel.path}/executions/{execution}?after={after}")


def waiting_for(file: str) -> str:
    """A cell that ends when the workspace has that file."""
    return f"import os, time\nwhile not os.path.exists({file!r}): time.sleep(0.005)"


def collect(kernel: Kernel, code: str, cut: int, **more: Any) -> tuple[list[dict[str, Any]], int]:
    """All events of a cell whose client leaves after every `cut` events, and how often it attached."""
    events: list[dict[str, Any]] = []

    def take(stream: Stream) -> bool:
        before = len(events)
        for event in stream:
            if event["event"] == "more":
                assert event["after"] == events[-1]["seq"]
                return False
            events.append(event)
            if event["event"] == "end" or len(events) == before + cut:
                break
        return events[-1]["event"] == "end"

    with begin(kernel, code, grace="30s", **more) as stream:
        done = take(stream)
    attached = 1
    while not done:
        with again(kernel, events[0]["execution"], events[-1]["seq"]) as stream:
            done = take(stream)
        attached += 1
    return events, attached


def test_a_client_that_comes_back_misses_nothing(kernel: Kernel) -> None:
    code = "for n in range(300):\n    print(n)\n    display(n) if n % 50 == 0 else None"
    events, attached = collect(kernel, code, cut=3)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert text_of(events) == "".join(f"{n}\n" for n in range(300))
    assert attached > 3


def test_a_stream_with_a_grace_asks_for_confirmation(kernel: Kernel) -> None:
    events, attached = collect(kernel, "print('x' * (3 << 20))", cut=1 << 30)
    assert text_of(events) == "x" * (3 << 20) + "\n"
    assert attached >= 6


def test_a_cell_is_held_up_while_nobody_confirms(kernel: Kernel) -> None:
    code = "import sys\nfor n in range(64):\n    sys.stdout.write('x' * (1 << 18)); open('wrote', 'w').write(str(n))"
    with begin(kernel, code, grace="30s") as stream:
        start = stream.until("start")
    wrote = kernel.picod.workspace / "wrote"
    # 4 MiB of events are kept, and a pipe holds a little more.
    assert eventually(lambda: wrote.exists() and int(wrote.read_text() or 0) >= 12)
    assert int(wrote.read_text()) < 24
    assert kernel.get()["state"] == "busy"
    events = [start]
    while events[-1]["event"] != "end":
        with again(kernel, start["execution"], events[-1]["seq"]) as stream:
            events += [event for event in stream if event["event"] != "more"]
    assert text_of(events) == "x" * (16 << 20)


def test_when_the_grace_is_over_the_cell_is_interrupted(kernel: Kernel) -> None:
    with begin(kernel, "import time; time.sleep(60)", grace="200ms") as stream:
        execution = stream.until("start")["execution"]
    assert eventually(lambda: kernel.get()["state"] == "idle")
    with again(kernel, execution, 0) as stream:
        assert [event["event"] for event in stream] == ["start", "error", "end"]
    with again(kernel, execution, 2) as stream:
        assert list(stream)[-1]["status"] == "interrupted"


def test_without_grace_the_cell_is_interrupted_at_once(kernel: Kernel) -> None:
    with begin(kernel, "import time; time.sleep(60)") as stream:
        stream.until("start")
    assert eventually(lambda: kernel.get()["state"] == "idle")


def test_the_newest_reader_wins(kernel: Kernel) -> None:
    with begin(kernel, waiting_for("newest"), grace="30s") as first:
        execution = first.until("start")["execution"]
        with again(kernel, execution, 0) as second:
            assert [event["event"] for event in first] == ["replaced"]
            (kernel.picod.workspace / "newest").touch()
            assert list(second)[-1]["status"] == "ok"


def test_a_repeated_call_runs_once(kernel: Kernel) -> None:
    kernel.run("runs = 0")
    body = {"code": "runs += 1\nprint(runs)"}
    told = []
    for _ in range(2):
        with kernel.picod.streaming(
            "POST", kernel.path + "/execute", body, **{"Idempotency-Key": "once"}
        ) as stream:
            told.append(list(stream))
    assert told[0] == told[1]
    assert kernel.value("runs") == "1"
    other = kernel.picod.call("POST", kernel.path + "/execute", {"code": "2"}, {"Idempotency-Key": "once"})
    assert (other.status, other.json()["code"]) == (409, "idempotency_conflict")
    wrong = kernel.picod.call("POST", kernel.path + "/execute", {"code": "2"}, {"Idempotency-Key": "a b"})
    assert wrong.status == 400


def test_a_repeated_call_finds_the_cell_that_killed_its_kernel(picod: PicoD) -> None:
    kernel = Kernel(picod)
    body = {"code": "import os; os._exit(3)", "create": {"language": "python"}}
    for _ in range(2):
        with picod.streaming("POST", kernel.path + "/execute", body, **{"Idempotency-Key": "k"}) as stream:
            assert stream.until("end")["reason"] == "it ended with exit code 3"
    picod.call("DELETE", kernel.path)


def test_a_busy_kernel_says_so_or_lets_wait_in_line(kernel: Kernel) -> None:
    kernel.run("order = []")
    with begin(kernel, waiting_for("line") + "\norder.append(0)") as stream:
        stream.until("start")
        busy = kernel.picod.call("POST", kernel.path + "/execute", {"code": "1"})
        assert (busy.status, busy.json()["code"], busy.json()["retryable"]) == (409, "kernel_busy", True)
        assert busy.headers["retry-after"] == "1"
        late = kernel.picod.call(
            "POST", kernel.path + "/execute", {"code": "order.append('late')", "wait": "50ms"}
        )
        assert late.json()["code"] == "kernel_busy"
        assert kernel.get()["execution"] is not None
        threads = [
            threading.Thread(target=kernel.run, args=("order.append(1)",), kwargs={"wait": "60s"})
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        (kernel.picod.workspace / "line").touch()
        assert stream.until("end")["status"] == "ok"
    for thread in threads:
        thread.join()
    assert kernel.value("order") == "[0, 1, 1, 1, 1]"


def test_a_client_that_leaves_the_line_keeps_nobody_waiting(kernel: Kernel) -> None:
    with begin(kernel, waiting_for("left")) as stream:
        stream.until("start")
        connection = kernel.picod.raw()
        body = b'{"code": "left = 1", "wait": "60s"}'
        connection.sendall(
            b"POST %s/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
            % (kernel.path.encode(), kernel.picod.token.encode(), len(body), body)
        )
        connection.close()
        for _ in range(10):  # PicoD hears of what came before it hears of these
            kernel.get()
        (kernel.picod.workspace / "left").touch()
        assert stream.until("end")["status"] == "ok"
    assert kernel.value("'left' in globals()", wait="60s") == "False"


def test_waiting_ends_when_the_kernel_does(picod: PicoD) -> None:
    kernel = Kernel(picod)
    answers = []
    with begin(kernel, "import time; time.sleep(60)") as stream:
        stream.until("start")
        thread = threading.Thread(
            target=lambda: answers.append(
                picod.call("POST", kernel.path + "/execute", {"code": "1", "wait": "60s"}).json()["code"]
            )
        )
        thread.start()
        picod.call("DELETE", kernel.path)
        thread.join()
    assert answers[0] == "kernel_not_found"


def test_events_are_kept_within_bounds_and_a_gap_is_told(picod: PicoD) -> None:
    kernel = Kernel(picod)
    first = kernel.run("print('x' * (3 << 20))")
    for _ in range(3):
        kernel.run("print('x' * (3 << 20))")
    with again(kernel, first[0]["execution"], 0) as stream:
        events = list(stream)
    last = first[-1]["seq"]
    assert [event["event"] for event in events] == ["gap", "end"]
    assert (events[0]["from"], events[0]["to"]) == (1, last - 1)
    assert events[1] == first[-1]
    for _ in range(32):
        kernel.run("")
    gone = picod.call("GET", f"{kernel.path}/executions/{first[0]['execution']}")
    assert (gone.status, gone.json()["code"]) == (404, "kernel_not_found")
    beyond = picod.call("GET", f"{kernel.path}/executions/{kernel.run('1')[0]['execution']}?after=99")
    assert (beyond.status, beyond.json()["code"]) == (400, "invalid")
    picod.call("DELETE", kernel.path)


def test_server_sent_events_say_the_same(kernel: Kernel) -> None:
    answer = kernel.picod.call(
        "POST", kernel.path + "/execute", {"code": "print('a\\nb')"}, {"Accept": "text/event-stream"}
    )
    assert answer.headers["content-type"] == "text/event-stream"
    first, second, third, rest = answer.body.split(b"\n\n")
    assert first.startswith(b'event: start\ndata: {"event":"start","seq":1,')
    assert second == b'event: stdout\ndata: {"event":"stdout","seq":2,"text":"a\\nb\\n"}'
    assert third.startswith(b"event: end\n")
    assert rest == b""


def test_output_between_cells_goes_to_the_next_one_or_nowhere(kernel: Kernel) -> None:
    kernel.run("import threading, time\nstop, said = threading.Event(), []")
    kernel.run(
        "def chatter():\n    while not stop.wait(0.002):\n        print('late'); said.append(1)\n"
        "thread = threading.Thread(target=chatter); thread.start()"
    )
    events = kernel.run(
        "before = len(said)\nwhile len(said) < before + 2: time.sleep(0.001)\nstop.set(); thread.join()"
    )
    assert "late\n" in text_of(events)
    assert [event["event"] for event in kernel.run("1")][1:] == ["execute_result", "end"]


def test_the_same_call_from_two_who_wait_in_line_runs_once(kernel: Kernel) -> None:
    kernel.run("twice = 0")
    body = {"code": "twice += 1\nprint(twice)", "wait": "60s"}
    told: list[list[dict[str, Any]]] = []

    def call() -> None:
        path = kernel.path + "/execute"
        with kernel.picod.streaming("POST", path, body, **{"Idempotency-Key": "two"}) as stream:
            told.append(list(stream))

    with begin(kernel, waiting_for("two")) as stream:
        stream.until("start")
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        (kernel.picod.workspace / "two").touch()
        list(stream)
    for thread in threads:
        thread.join()
    assert kernel.value("twice", wait="60s") == "1"
    executions = {events[0]["execution"] for events in told if events[0]["event"] == "start"}
    assert len(executions) == 1


def test_who_leaves_while_a_kernel_starts_leaves_none_behind(picod: PicoD) -> None:
    before = set(descendants(picod.pid))
    for _ in range(10):
        connection = picod.raw()
        connection.sendall(
            b"POST /api/kernels HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{}"
            % picod.token.encode()
        )
        connection.close()
    made = {one["id"] for one in picod.call("GET", "/api/kernels").json()["kernels"]}
    assert Kernel(picod).value("6 * 7") == "42"  # the fork server answers those who stay
    assert len(made) <= 16

    def settled() -> bool:
        kernels = picod.call("GET", "/api/kernels").json()["kernels"]
        return all(one["state"] != "starting" for one in kernels)

    assert eventually(settled)
    for one in picod.call("GET", "/api/kernels").json()["kernels"]:
        if one["pid"] not in before:
            picod.call("DELETE", f"/api/kernels/{one['id']}")
    assert eventually(lambda: set(descendants(picod.pid)) <= before)
