"""/api/kernels: what lives across cells, what they say, and how kernels begin and end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from .conftest import Keys, PicoD, descendants, eventually
from .kernels import Kernel, data_of, error_of, running, text_of


@pytest.fixture(scope="module")
def picod(keys: Keys) -> Iterator[PicoD]:
    with running(keys) as picod:
        yield picod


@pytest.fixture(scope="module")
def kernel(picod: PicoD) -> Kernel:
    return Kernel(picod)


@pytest.fixture(scope="module")
def bash(picod: PicoD) -> Kernel:
    return Kernel(picod, language="bash")


# What cells say


def test_variables_live_across_cells(kernel: Kernel) -> None:
    kernel.run("survivor = 41")
    assert kernel.value("survivor + 1") == "42"


def test_a_cell_tells_its_events_in_order(kernel: Kernel) -> None:
    events = kernel.run("print('a'); display(1); print('b'); display(2); print('c'); 3")
    said = [(event["event"], event.get("text") or event.get("data")) for event in events[1:-1]]
    assert said == [
        ("stdout", "a\n"),
        ("display_data", {"text/plain": "1"}),
        ("stdout", "b\n"),
        ("display_data", {"text/plain": "2"}),
        ("stdout", "c\n"),
        ("execute_result", {"text/plain": "3"}),
    ]
    start, end = events[0], events[-1]
    assert start["kernel"] == kernel.made["id"]
    assert end["status"] == "ok"
    assert end["execution_count"] == start["execution_count"]
    assert end["state_lost"] is False
    assert end["duration"] >= 0


def test_streams_of_programs_and_c_arrive_in_order(kernel: Kernel) -> None:
    code = (
        "import ctypes, os, subprocess, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "for n in range(3):\n"
        "    print(n, 'python'); libc.printf(b'%d c\\n', n)\n"
        "    subprocess.run(['echo', str(n), 'program']); os.write(1, b'%d raw\\n' % n)\n"
        "    sys.stdout.buffer.write(b'%d bytes\\n' % n); sys.stdout.buffer.flush()\n"
    )
    kinds = ("python", "c", "program", "raw", "bytes")
    assert kernel.out(code) == "".join(f"{n} {kind}\n" for n in range(3) for kind in kinds)


def test_output_is_streamed_as_it_is_written(kernel: Kernel) -> None:
    code = "import sys, time\nprint('dot', end='')\nsys.stderr.write('err')\ntime.sleep(60)"
    with kernel.picod.streaming("POST", kernel.path + "/execute", {"code": code}) as stream:
        seen = {stream.until("start")["event"]}
        while seen != {"start", "stdout", "stderr"}:
            seen.add(next(iter(stream))["event"])
        kernel.picod.call("POST", kernel.path + "/interrupt", {})
        assert stream.until("end")["status"] == "interrupted"


def test_characters_are_never_cut_and_bytes_that_are_none_are_replaced(kernel: Kernel) -> None:
    code = "import os, time\nos.write(1, b'\\xe2'); time.sleep(0.05); os.write(1, b'\\x82\\xac|\\xff|\\xe2')"
    assert kernel.out(code) == "€|�|�"


def test_silent_cells_show_no_value_and_are_not_counted(kernel: Kernel) -> None:
    before = kernel.run("1")[-1]["execution_count"]
    events = kernel.run("silent = 7\nsilent", silent=True)
    assert [event["event"] for event in events] == ["start", "end"]
    kernel.run("2", store_history=False)
    assert kernel.run("silent")[-1]["execution_count"] == before + 1


def test_errors_point_into_the_cell(kernel: Kernel) -> None:
    kernel.run("def divide(a, b):\n    return a / b")
    events = kernel.run("divide(1, 2)\ndivide(1, 0)")
    error = error_of(events)
    assert (error["name"], error["value"]) == ("ZeroDivisionError", "division by zero")
    count = events[0]["execution_count"]
    text = "\n".join(error["traceback"])
    assert f'File "Cell In[{count}]", line 2, in <module>' in text
    assert f'File "Cell In[{count - 1}]", line 2, in divide' in text
    assert "kernelhost" not in text
    assert events[-1]["status"] == "error"


def test_syntax_errors_show_the_place(kernel: Kernel) -> None:
    error = error_of(kernel.run("x = 1\ny = = 2"))
    assert error["name"] == "SyntaxError"
    assert "line 2" in "\n".join(error["traceback"])


def test_top_level_await_shares_one_loop(kernel: Kernel) -> None:
    kernel.run(
        "import asyncio\nqueue = asyncio.Queue()\nfirst = asyncio.get_running_loop(); await queue.put(5)"
    )
    assert kernel.value("await queue.get()") == "5"
    assert kernel.value("asyncio.get_running_loop() is first; await asyncio.sleep(0, 8)") == "8"


def test_tasks_go_on_between_cells(kernel: Kernel) -> None:
    kernel.run(
        "import asyncio, os\nasync def later():\n    await asyncio.sleep(0.01)\n"
        "    open('later', 'w').close()\ntask = asyncio.ensure_future(later())\nawait asyncio.sleep(0)"
    )
    eventually((kernel.picod.workspace / "later").exists)
    assert kernel.value("task.done()") == "True"


def test_input_says_what_to_do_instead(kernel: Kernel) -> None:
    for code in ("input('name? ')", "import getpass; getpass.getpass()"):
        error = error_of(kernel.run(code))
        assert error["name"] == "StdinNotImplementedError"
        assert "process with stdin" in error["value"]
        text = "\n".join(error["traceback"])
        assert code in text or "Cell In[" in text
        assert "kernelhost" not in text
    assert kernel.value("import sys; sys.stdin.read()") == "''"


def test_shell_lines_stream_and_installers_are_refused(kernel: Kernel) -> None:
    events = kernel.run("!echo out; echo err >&2; exit 3\nprint(_exit_code)")
    assert (text_of(events), text_of(events, "stderr")) == ("out\n3\n", "err\n")
    for line in ("%pip install x", "%conda install x"):
        assert "agentcube env create" in error_of(kernel.run(line))["value"]


def test_exit_ends_no_kernel(kernel: Kernel) -> None:
    kernel.run("stayed = 1")
    assert "restart" in text_of(kernel.run("exit()"), "stderr")
    assert error_of(kernel.run("import sys; sys.exit(3)"))["name"] == "SystemExit"
    assert kernel.value("stayed") == "1"


def test_a_display_can_be_updated_and_output_cleared(kernel: Kernel) -> None:
    events = kernel.run("handle = display(1, display_id='x')\nhandle.update(2)\nclear_output(wait=True)")
    shown = [(event["event"], event.get("display_id")) for event in events[1:-1]]
    assert shown == [("display_data", "x"), ("update_display_data", "x"), ("clear_output", None)]
    assert events[3]["wait"] is True


def test_bundles_have_texts_objects_and_bytes(kernel: Kernel) -> None:
    kernel.run(
        "class Rich:\n"
        "    def __repr__(self): return 'rich'\n"
        "    def _repr_html_(self): return '<b>ü</b>'\n"
        "    def _repr_json_(self): return {'a': [1, float('nan')], 2: None}\n"
        "    def _repr_png_(self): return b'\\x89PNG'\n"
        "    def _repr_latex_(self): raise NotImplementedError"
    )
    (data,) = data_of(kernel.run("Rich()"), "execute_result")
    assert data == {
        "text/plain": "rich",
        "text/html": "<b>ü</b>",
        "application/json": {"a": [1, None], "2": None},
        "image/png": "iVBORw==",
    }


def test_what_is_too_large_is_left_out_and_says_so(kernel: Kernel) -> None:
    kernel.run(
        "class Big:\n    def _repr_html_(self): return 'x' * (17 << 20)\n    def __repr__(self): return 'big'"
    )
    (data,) = data_of(kernel.run("Big()"), "execute_result")
    assert data["text/plain"].startswith("big\n[left out, too large for one output: text/html (17 MiB)")
    (data,) = data_of(kernel.run("display({'text/html': 'x' * (15 << 20)}, raw=True)"))
    assert len(data["text/html"]) == 15 << 20


def test_the_namespace_is_a_clean_main(kernel: Kernel) -> None:
    assert (
        kernel.value("__name__, __import__('sys').modules['__main__'].__dict__ is globals()")
        == "('__main__', True)"
    )
    assert kernel.value("import sys; sys.argv, sys.path[0]") == "([''], '')"
    kernel.run("import pickle\nclass Mine: pass")
    assert kernel.value("type(pickle.loads(pickle.dumps(Mine()))) is Mine") == "True"


def test_programs_find_the_kernels_directory_and_environment(picod: PicoD) -> None:
    (picod.workspace / "sub").mkdir()
    for language in ("python", "bash"):
        kernel = Kernel(picod, language=language, working_dir="sub", env={"GREETING": "hällo", "TZ": "UTC"})
        code = "!echo $PWD $GREETING" if language == "python" else "echo $PWD $GREETING"
        assert kernel.out(code) == f"{picod.workspace}/sub hällo\n"
        picod.call("DELETE", kernel.path)


def test_kernels_draw_different_random_numbers(picod: PicoD) -> None:
    code = "import random; random.random()"
    first, second = Kernel(picod), Kernel(picod)
    assert first.value(code) != second.value(code)
    for one in (first, second):
        picod.call("DELETE", one.path)


# Bash


def test_bash_keeps_variables_functions_and_its_directory(bash: Kernel) -> None:
    bash.run("count=1; declare -A map=([a]=b); shout() { echo \"$1!\"; }; cd /; alias hi='echo hi'")
    assert bash.out("count=$((count + 1)); echo $count ${map[a]} $PWD; shout hey") == "2 b /\nhey!\n"
    assert bash.out("hi") == "hi\n"
    assert bash.made["implementation"].startswith("bash ")


def test_bash_tells_the_status(bash: Kernel) -> None:
    events = bash.run("grep -q nothing /dev/null")
    assert events[-1]["exit_code"] == 1
    assert events[-1]["status"] == "error"
    assert error_of(events)["value"] == "1"
    assert bash.out("echo $?") == "1\n"
    assert bash.out("echo $?") == "0\n"


def test_bash_cells_read_nothing_and_their_syntax_is_their_own(bash: Kernel) -> None:
    assert bash.out("cat; read x; echo done") == "done\n"
    events = bash.run("for x in 1 2; do")
    assert events[-1]["status"] == "error"
    assert "syntax error" in text_of(events, "stderr")
    assert bash.out("break 2>/dev/null; for i in 1 2; do\n echo 'a'$i\ndone; echo \"it's\" '\"$x\"'") == (
        'a1\na2\nit\'s "$x"\n'
    )


def test_bash_is_interrupted_within_functions_and_pipes(bash: Kernel) -> None:
    bash.run("slow() { sleep 60; echo inner; }")
    for code in ("slow; echo outer", "sleep 60 | cat; echo outer", "while :; do :; done; echo outer"):
        events = bash.run(code, timeout="200ms")
        assert events[-1]["status"] == "timed_out", events
        assert events[-1]["state_lost"] is False
        assert text_of(events) == ""
    assert bash.out("echo $?; type -t slow") == "130\nfunction\n"


@pytest.mark.parametrize(
    ("code", "status"), [("exit 3", 3), ("set -e; false; echo no", 1), ("exec sh -c 'exit 7'", 7)]
)
def test_bash_ends_truthfully(picod: PicoD, code: str, status: int) -> None:
    kernel = Kernel(picod, language="bash")
    kernel.run("trap 'echo bye' EXIT")
    events = kernel.run(code)
    assert (events[-1]["status"], events[-1]["state_lost"]) == ("kernel_died", True)
    assert events[-1]["reason"] == f"it ended with exit code {status}"
    assert text_of(events) == ("" if status == 7 else "bye\n")
    picod.call("DELETE", kernel.path)


# Interrupts and ends


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


# Making and finding


def test_a_kernel_describes_itself(kernel: Kernel) -> None:
    document = kernel.get()
    assert document["language"] == "python"
    assert document["implementation"].startswith("python 3.")
    assert document["state"] == "idle"
    assert document["execution"] is None
    assert document["pid"] > 1
    assert document["memory_bytes"] > 0
    assert document["created_at"] <= document["last_active_at"]
    listed = kernel.picod.call("GET", "/api/kernels").json()["kernels"]
    assert document["id"] in [one["id"] for one in listed]


def test_put_is_repeatable(picod: PicoD) -> None:
    first = picod.call("PUT", "/api/kernels/mine", {"language": "python"})
    assert "memory_bytes" not in first.json()  # measuring it takes a good part of a start
    again = picod.call("PUT", "/api/kernels/mine", {"language": "python"})
    other = picod.call("PUT", "/api/kernels/mine", {"language": "bash"})
    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert first.json()["pid"] == again.json()["pid"]
    assert other.json()["code"] == "kernel_exists"
    assert picod.call("DELETE", "/api/kernels/mine").status == 204


def test_many_may_put_the_same_kernel_at_once(picod: PicoD) -> None:
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(picod.call("PUT", "/api/kernels/race", {"language": "python"}))
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["pid"] for answer in answers}) == 1
    picod.call("DELETE", "/api/kernels/race")


def test_execute_makes_a_kernel_that_is_absent_or_dead(picod: PicoD) -> None:
    path = "/api/kernels/made/execute"
    body = {"code": "1 + 1", "create": {"language": "python"}}
    assert picod.call("POST", path, {"code": "1"}).json()["code"] == "kernel_not_found"
    for _ in range(2):
        with picod.streaming("POST", path, body) as stream:
            assert data_of(list(stream), "execute_result") == [{"text/plain": "2"}]
        with picod.streaming("POST", path, {"code": "import os; os._exit(1)"}) as stream:
            assert stream.until("end")["status"] == "kernel_died"
    wrong = picod.call("POST", path, {"code": "1", "create": {"language": "bash"}})
    assert wrong.json()["code"] == "kernel_exists"
    picod.call("DELETE", "/api/kernels/made")


def test_there_are_sixteen_kernels_and_the_dead_make_room(keys: Keys) -> None:
    with running(keys) as picod:
        kernels = [Kernel(picod, language="bash") for _ in range(16)]
        full = picod.call("POST", "/api/kernels", {"language": "bash"})
        assert (full.status, full.json()["code"]) == (429, "limit_exceeded")
        kernels[5].run("exit 0")
        kernels.append(Kernel(picod, language="bash"))
        assert picod.call("GET", kernels[5].path).status == 404
        assert all(picod.call("GET", one.path).status == 200 for one in kernels if one is not kernels[5])


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "", {"language": "ruby"}, 400, "invalid"),
        ("POST", "", {"color": "red"}, 400, "invalid"),
        ("POST", "", {"working_dir": "missing"}, 400, "invalid"),
        ("POST", "", {"language": "bash", "working_dir": "missing"}, 400, "invalid"),
        ("POST", "", {"env": {"A=": "1"}}, 400, "invalid"),
        ("PUT", "/Upper", {}, 400, "invalid"),
        ("PUT", "/" + "x" * 41, {}, 400, "invalid"),
        ("GET", "/unknown", None, 404, "kernel_not_found"),
        ("POST", "/unknown/restart", None, 404, "kernel_not_found"),
        ("POST", "/unknown/interrupt", {}, 404, "kernel_not_found"),
        ("POST", "/unknown/execute", {"code": ""}, 404, "kernel_not_found"),
        ("POST", "/{}/execute", {}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": 5}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "\ud800"}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "\x00"}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "1", "timeout": "25h"}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "1", "wait": "11m"}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "1", "grace": "2h"}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "1", "silent": 1}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "1", "create": 1}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "1", "magic": True}, 400, "invalid"),
        ("POST", "/{}/execute", {"code": "#" * ((8 << 20) + 1)}, 413, "body_too_large"),
        ("POST", "/{}/interrupt", {"grace": "soon"}, 400, "invalid"),
        ("GET", "/{}/executions/e-unknown", None, 404, "kernel_not_found"),
    ],
)
def test_bad_requests_are_named(
    kernel: Kernel, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = kernel.picod.call(method, "/api/kernels" + path.replace("{}", kernel.made["id"]), body)
    assert (answer.status, answer.json()["code"]) == (status, code), answer.body


def test_a_cell_of_eight_megabytes_runs(kernel: Kernel, bash: Kernel) -> None:
    assert kernel.value(f"len('{'x' * ((8 << 20) - 20)}')") == str((8 << 20) - 20)
    assert bash.out(f": {'x' * (1 << 20)}; echo fine") == "fine\n"


@pytest.mark.parametrize("forks", [True, False])
def test_kernels_are_executed_where_no_fork_server_is(keys: Keys, forks: bool) -> None:
    with running(keys, forks=forks) as picod:
        if forks:  # it was there, and is killed
            (server,) = descendants(picod.pid)
            assert Kernel(picod).value("__import__('sys').flags.isolated") == "0"
            Kernel(picod, language="bash").run(f"kill -9 {server}")
        kernel = Kernel(picod)
        assert kernel.value("__import__('os').getppid()") == str(picod.pid)
        assert kernel.value("display.__module__") == "'agentcube.kernelhost.displays'"
        refused = picod.call("POST", "/api/kernels", {"working_dir": "missing"})
        assert (refused.status, refused.json()["code"]) == (400, "invalid")


def test_an_image_without_the_interpreter_says_so(keys: Keys) -> None:
    with running(keys, forks=False, env={"PATH": "/nowhere"}) as picod:
        for language in ("python", "bash"):
            answer = picod.call("POST", "/api/kernels", {"language": language})
            assert (answer.status, answer.json()["code"]) == (400, "invalid")
            assert "No such file" in answer.json()["detail"]
        assert picod.call("GET", "/api/kernels").json() == {"kernels": []}
