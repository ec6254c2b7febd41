"""What lives across cells, and what cells say."""

from __future__ import annotations

import pytest
from tests.integration.picod.conftest import PicoD, eventually

from .kernel import Kernel, data_of, error_of, text_of

# Python


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
