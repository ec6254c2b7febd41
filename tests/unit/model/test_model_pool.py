"""Bringing a pool to its target."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentcube.model.ids import SandboxId
from agentcube.model.pool import PoolPlan, WarmSandbox, WarmState, plan_pool
from agentcube.model.template import Template, WarmPool
from agentcube.testing.samples import NOW, sample_sandbox, sample_template, sample_warm

MANY = 100


def template(target: int, generation: int = 2) -> Template:
    return sample_template(generation=generation, warm_pool=WarmPool(max=target, target=target))


def entry(id: str, *, age: int = 0, state: WarmState = WarmState.READY, generation: int = 2) -> WarmSandbox:
    return sample_warm(id, created_at=NOW - timedelta(seconds=age), state=state, generation=generation)


def test_an_empty_pool_is_filled_as_fast_as_allowed() -> None:
    assert plan_pool(template(5), [], in_flight_max=MANY) == PoolPlan(start=5, drain=())
    assert plan_pool(template(5), [], in_flight_max=2) == PoolPlan(start=2, drain=())
    assert plan_pool(template(5), [], in_flight_max=0) == PoolPlan(start=0, drain=())


def test_what_starts_counts_towards_the_target_and_against_the_limit() -> None:
    entries = [entry("a", state=WarmState.STARTING), entry("b")]
    assert plan_pool(template(5), entries, in_flight_max=MANY) == PoolPlan(start=3, drain=())
    assert plan_pool(template(5), entries, in_flight_max=2) == PoolPlan(start=1, drain=())
    assert plan_pool(template(5), entries, in_flight_max=1) == PoolPlan(start=0, drain=())


def test_a_full_pool_is_left_alone() -> None:
    assert plan_pool(template(2), [entry("a"), entry("b")], in_flight_max=MANY) == PoolPlan(start=0, drain=())


def test_the_oldest_ready_ones_above_the_target_are_drained() -> None:
    entries = [entry("new"), entry("old", age=9), entry("mid", age=5)]
    assert plan_pool(template(1), entries, in_flight_max=MANY) == PoolPlan(start=0, drain=("old", "mid"))
    starting = [*entries, entry("starts", age=20, state=WarmState.STARTING)]
    assert plan_pool(template(0), starting, in_flight_max=MANY).drain == ("old", "mid", "new")


def test_other_generations_are_drained_and_replaced_whatever_their_state() -> None:
    entries = [entry("old", generation=1), entry("older", generation=1, state=WarmState.STARTING), entry("a")]
    assert plan_pool(template(2), entries, in_flight_max=MANY) == PoolPlan(start=1, drain=("old", "older"))


def test_a_template_that_is_gone_has_no_pool() -> None:
    entries = [entry("a"), entry("b", state=WarmState.STARTING)]
    assert plan_pool(None, entries, in_flight_max=MANY) == PoolPlan(start=0, drain=("a", "b"))


class Pool(RuleBasedStateMachine):
    """A pool whose target moves, whose entries are claimed and die, and which is only ever planned."""

    def __init__(self) -> None:
        super().__init__()
        self.template = template(3, generation=1)
        self.entries: dict[SandboxId, WarmSandbox] = {}
        self.made = 0

    @rule(size=st.integers(0, 6))
    def aim(self, size: int) -> None:
        self.template = replace(self.template, warm_pool=WarmPool(max=size, target=size))

    @rule()
    def change_the_template(self) -> None:
        self.template = replace(self.template, generation=self.template.generation + 1)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def take_one(self, data: st.DataObject) -> None:
        del self.entries[data.draw(st.sampled_from(sorted(self.entries)))]

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def finish_one(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.entries)))
        self.entries[id] = replace(self.entries[id], state=WarmState.READY, sandbox=sample_sandbox(id))

    @rule(in_flight_max=st.integers(0, 4))
    def one_pass(self, in_flight_max: int) -> None:
        todo = plan_pool(self.template, list(self.entries.values()), in_flight_max=in_flight_max)
        assert len(set(todo.drain)) == len(todo.drain)
        for id in todo.drain:
            del self.entries[id]
        starting = sum(e.state is WarmState.STARTING for e in self.entries.values())
        assert todo.start >= 0
        assert todo.start == 0 or starting + todo.start <= in_flight_max
        for _ in range(todo.start):
            self.made += 1
            new = entry(f"sb-{self.made}", state=WarmState.STARTING, generation=self.template.generation)
            self.entries[new.id] = new
        assert all(e.generation == self.template.generation for e in self.entries.values())

    @invariant()
    def enough_passes_bring_it_to_its_target(self) -> None:
        entries = dict(self.entries)
        for i in range(20):
            todo = plan_pool(self.template, list(entries.values()), in_flight_max=2)
            for id in todo.drain:
                del entries[id]
            for j in range(todo.start):
                new = entry(f"new-{i}-{j}", generation=self.template.generation)
                entries[new.id] = new
            for id, e in entries.items():
                entries[id] = replace(e, state=WarmState.READY, sandbox=sample_sandbox(id))
        assert len(entries) == self.template.warm_pool.target
        assert plan_pool(self.template, list(entries.values()), in_flight_max=2) == PoolPlan(
            start=0, drain=()
        )


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_pass_never_drains_and_starts_at_once_for_size(target: int, have: int) -> None:
    todo = plan_pool(template(target), [entry(str(i)) for i in range(have)], in_flight_max=MANY)
    assert not (todo.start and todo.drain)
    assert have + todo.start - len(todo.drain) == target
