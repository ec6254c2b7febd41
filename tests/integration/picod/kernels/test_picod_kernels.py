"""/api/kernels: how kernels are made and found, and what is refused."""

from __future__ import annotations

import threading

import pytest
from tests.integration.picod.conftest import Keys, PicoD, descendants

from .kernel import Kernel, data_of, running


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
