"""However often and whenever a bash kernel is interrupted, its cells end and its state is kept."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.integration.picod.conftest import Keys, PicoD, eventually

from .kernel import Kernel, running, text_of

AT_ONCE = (
    "while :; do :; done",
    "while :; do x=$(/bin/true); done",
    "sleep 300",
    "(sleep 300; echo no)",
    "x=$(sleep 300)",
    "sleep 300 | cat | cat",
    "f() { local y; read y < <(sleep 300); f; }; f",
)
# Here bash mostly waits for a program that is being started, and does not hear of the interrupt.
IN_SOME_TIME = ("while :; do /bin/true; done", "while :; do (:); done")


@pytest.fixture(scope="module")
def picod(keys: Keys) -> Iterator[PicoD]:
    with running(keys, forks=False) as picod:
        yield picod


@pytest.fixture
def bash(picod: PicoD) -> Iterator[Kernel]:
    kernel = Kernel(picod, language="bash")
    yield kernel
    picod.call("DELETE", kernel.path)


def begin_and_interrupt(bash: Kernel, code: str, chance: random.Random, times: int) -> dict[str, Any]:
    """The end of a cell that is interrupted at any moment, by so many calls at once."""

    def interrupt(number: int) -> None:
        bash.picod.call("POST", bash.path + "/interrupt", {"grace": "60s"})

    with bash.picod.streaming("POST", bash.path + "/execute", {"code": code}) as stream:
        stream.until("start")
        until = time.monotonic() + chance.random() * 0.01
        while time.monotonic() < until:
            pass
        with ThreadPoolExecutor(times) as pool:
            list(pool.map(interrupt, range(times)))
        return list(stream)[-1]


def test_whenever_a_bash_is_interrupted_its_cell_ends_and_the_next_one_runs(bash: Kernel) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    bash.run("kept=yes; fails() { return 3; }")
    for number in range(100):
        code = chance.choice(IN_SOME_TIME if number % 50 == 0 else AT_ONCE)
        end = begin_and_interrupt(bash, code, chance, chance.choice((1, 2, 4)))
        assert (end["status"], end["exit_code"]) == ("interrupted", 130), (seed, number, code)
        end = begin_and_interrupt(bash, "/bin/true; fails", chance, 2)  # ends by itself just then, or before
        assert end.get("exit_code") in (3, 130), (seed, number, end)
        said = bash.out("echo $? $kept")
        assert said == f"{end['exit_code']} yes\n", (seed, number)


def test_a_program_that_handles_an_interrupt_gets_one(bash: Kernel) -> None:
    code = "bash -c 'trap \"echo handled; exit\" INT; touch begun; while :; do sleep 0.05; done'; echo next"
    with bash.picod.streaming("POST", bash.path + "/execute", {"code": code}) as stream:
        assert eventually((bash.picod.workspace / "begun").exists)
        assert bash.picod.call("POST", bash.path + "/interrupt", {}).status == 200
        assert text_of(list(stream)) == "handled\nnext\n"


def test_what_a_program_starts_when_it_is_interrupted_is_left_alone(bash: Kernel) -> None:
    """To clean up, say, which may take longer than the pause after which an interrupt is said again."""
    code = "bash -c 'trap \"sleep 0.7 && touch saved; exit\" INT; echo ready; while :; do sleep 0.05; done'"
    with bash.picod.streaming("POST", bash.path + "/execute", {"code": code}) as stream:
        stream.until("stdout")
        bash.picod.call("POST", bash.path + "/interrupt", {"grace": "60s"})
        list(stream)
    assert bash.out("ls saved") == "saved\n"


@pytest.mark.parametrize("name", ["echo", "read", "eval", "exit", "return"])
@pytest.mark.parametrize("how", ["{name}() {{ printf mine; }}", "alias {name}='printf mine'"])
def test_names_that_the_user_takes_are_his(bash: Kernel, name: str, how: str) -> None:
    bash.run(how.format(name=name))
    assert bash.out("printf 'still %s' here") == "still here"
    assert bash.out(f"{name} x") == "mine"
