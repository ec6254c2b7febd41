"""What befalls a run: which kinds of fault there are, how often, and for how long, all from the seed.

Each run has some kinds only ("swarm testing"): a bug that needs two faults and no third is found too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.loop import Process
    from tests.simulation.world import World

KINDS = (
    "manager crash",
    "manager stop",
    "manager pause",
    "strike",
    "router crash",
    "router pause",
    "store down",
    "store slow",
    "link cut",
    "partition",
    "bad network",
    "driver fails",
    "driver slow",
    "driver late",
    "driver blind",
    "box dies",
    "clock jump",
    "template",
)


def _no_one(process: Process, operation: str | None = None) -> None:
    """Is hit."""


class Faults:
    """Makes trouble until told to end; then everything is well again."""

    def __init__(self, world: World, random: Random, kinds: tuple[str, ...] | None) -> None:
        self._world = world
        self._random = random
        count = random.choice((0, 1, 2, 3, 5, 8, 12, len(KINDS)))
        chosen = random.sample(KINDS, count)
        self.kinds = [kind for kind in KINDS if kind in (chosen if kinds is None else kinds)]
        self.pace_s = random.choice((1.0, 3.0, 8.0))
        self._made = 0
        self.under_way: dict[asyncio.Task[None], None] = {}

    def _over(self, task: asyncio.Task[None]) -> None:
        del self.under_way[task]
        self._world.checker.disturb()

    def told(self) -> str:
        """For people."""
        return f"{self._made} of {', '.join(self.kinds) or 'no kind'}"

    async def run(self, seconds: float) -> None:
        """Faults for that long, then none."""
        loop, random = self._world.loop, self._random
        end = loop.time() + seconds
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "manager crash": self._crash_manager,
            "manager stop": self._stop_manager,
            "manager pause": self._pause_manager,
            "strike": self._strike,
            "router crash": self._crash_router,
            "router pause": self._pause_router,
            "store down": self._store_down,
            "store slow": self._store_slow,
            "link cut": self._link_cut,
            "partition": self._partition,
            "bad network": self._bad_network,
            "driver fails": self._driver_fails,
            "driver slow": self._driver_slow,
            "driver late": self._driver_late,
            "driver blind": self._driver_blind,
            "box dies": self._box_dies,
            "clock jump": self._clock_jump,
            "template": self._template,
        }
        under_way = self.under_way
        while self.kinds and loop.time() < end:
            await asyncio.sleep(random.expovariate(1.0) * self.pace_s)
            kind = random.choice(self.kinds)
            self._made += 1
            self._world.checker.note(f"FAULT {kind}")
            self._world.checker.disturb()
            task = loop.create_task(acts[kind]())  # type: ignore[arg-type]
            under_way[task] = None
            task.add_done_callback(self._over)
        self._world.machine.on_act = self._world.store.on_write = _no_one
        if under_way:
            await asyncio.wait(list(under_way))
        for one in [*self._world.managers.alive, *self._world.routers]:
            one.process.crash_in = 0
        if loop.time() < end:
            await asyncio.sleep(end - loop.time())
        self._world.checker.note("FAULTS are over")

    def _duration(self, longest_s: float) -> float:
        return longest_s * self._random.random() ** 2

    # Processes

    def _standstill_s(self) -> float:
        """How long a manager stands still; often until just when another takes over what it held."""
        return 3.0 + 1.5 * self._random.random() if self._random.random() < 0.5 else self._duration(15.0)

    async def _crash_manager(self) -> None:
        alive = self._world.managers.alive
        if alive:
            # At some callback from now on: at any await there is.
            self._random.choice(alive).process.crash_in = 1 + int(self._random.expovariate(0.005))
        await asyncio.sleep(5.0)

    async def _strike(self) -> None:
        """A manager's next act (of one kind, at times) or write is hit: on its way, or done and not yet known to be."""
        world, random = self._world, self._random
        kind = random.choice(("crash", "pause", "pause", "cut"))
        skipped = random.randrange(4)
        wanted = random.choice((None, "create", "bind", "destroy", "suspend", "resume"))

        def hit(process: Process, operation: str | None = None) -> None:
            nonlocal skipped
            if operation is not None and wanted not in (None, operation):
                return
            skipped -= 1
            if skipped >= 0 or not process.name.startswith("m") or process.paused or not process.alive:
                return
            world.machine.on_act = world.store.on_write = _no_one
            world.checker.note(f"STRIKE {kind} {process}")
            world.checker.disturb()
            if kind == "crash":
                process.crash_in = process.crash_in or 1 + random.randrange(8)
            elif kind == "cut":
                for link in world.store.links:
                    if link.process is process:
                        link.cut()
            else:
                world.loop.pause(process)
                world.loop.deliver(
                    world.loop.world, world.loop.time() + self._standstill_s(), self._go_on, process
                )

        if random.random() < 0.5:
            world.machine.on_act = hit
        else:
            world.store.on_write = hit
        await asyncio.sleep(5.0)

    def _go_on(self, process: Process) -> None:
        self._world.checker.disturb()
        if process.alive:
            self._world.loop.go_on(process)

    async def _crash_router(self) -> None:
        routers = [router for router in self._world.routers if router.process.alive]
        if routers:
            self._random.choice(routers).process.crash_in = 1 + int(self._random.expovariate(0.01))
        await asyncio.sleep(5.0)

    def crashed(self, process: Process) -> None:
        """The loop came to the callback at which `process` was to crash."""
        world = self._world
        world.checker.note(f"CRASH {process}")
        world.checker.disturb()
        managers, routers = world.managers.alive, world.routers
        stopping = process not in [one.process for one in [*managers, *routers]]
        number = int(process.name[1:].split(".")[0])
        world.managers.alive = [m for m in managers if m.process is not process]
        world.routers = [r for r in routers if r.process is not process]
        world.loop.crash(process)
        if stopping:
            return  # whoever stopped it starts the next
        start = world.start_manager if process.name.startswith("m") else world.start_router
        world.loop.deliver(world.loop.world, world.loop.time() + 0.05 + self._duration(3.0), start, number)

    async def _stop_manager(self) -> None:
        """As told to stop with its sandboxes kept: its tasks are cancelled and may finish."""
        world = self._world
        if not world.managers.alive:
            return
        one = self._random.choice(world.managers.alive)
        number = int(one.process.name[1:].split(".")[0])
        world.managers.alive.remove(one)
        with world.loop.within(one.process):
            one.manager.refuse()
            one.running.cancel()
        await asyncio.sleep(0.3)
        world.loop.crash(one.process)
        await asyncio.sleep(self._duration(2.0))
        world.start_manager(number)

    async def _pause(self, process: Process, longest_s: float) -> None:
        world = self._world
        if process.paused:
            return
        world.loop.pause(process)
        await asyncio.sleep(self._duration(longest_s))
        world.checker.disturb()
        if process.alive:
            world.loop.go_on(process)

    async def _pause_manager(self) -> None:
        if self._world.managers.alive:
            await self._pause(self._random.choice(self._world.managers.alive).process, 15.0)

    async def _pause_router(self) -> None:
        if self._world.routers:
            await self._pause(self._random.choice(self._world.routers).process, 8.0)

    # The store and the network

    async def _store_down(self) -> None:
        store = self._world.store
        if store.is_down:
            return
        store.go_down()
        await asyncio.sleep(self._duration(8.0))
        self._world.checker.disturb()
        store.come_up()

    async def _store_slow(self) -> None:
        store = self._world.store
        store.delay_s = 0.3
        await asyncio.sleep(self._duration(5.0))
        self._world.checker.disturb()
        store.delay_s = store.usual_delay_s

    async def _link_cut(self) -> None:
        links = [link for link in self._world.store.links if link.process.alive]
        if links:
            self._random.choice(links).cut()

    async def _partition(self) -> None:
        links = [link for link in self._world.store.links if link.process.alive]
        if links:
            link = self._random.choice(links)
            link.cut_off = True
            link.cut()
            await asyncio.sleep(self._duration(25.0))
            self._world.checker.disturb()
            link.cut_off = False

    async def _bad_network(self) -> None:
        weather, random = self._world.network.weather, self._random.random
        weather.late, weather.late_s = 0.2 * random(), 3.0
        weather.lost, weather.doubled = 0.1 * random(), 0.3 * random()
        weather.reset = 0.02 * random()
        await asyncio.sleep(self._duration(10.0))
        weather.calm()

    # The machine

    async def _driver_fails(self) -> None:
        trouble = self._world.machine.trouble
        trouble.fails, trouble.answer_lost = 0.4 * self._random.random(), 0.3 * self._random.random()
        await asyncio.sleep(self._duration(6.0))
        trouble.fails = trouble.answer_lost = 0.0

    async def _driver_slow(self) -> None:
        trouble = self._world.machine.trouble
        trouble.slow, trouble.slow_s = 0.4 * self._random.random(), 8.0
        await asyncio.sleep(self._duration(6.0))
        trouble.slow = 0.0

    async def _driver_late(self) -> None:
        """Nobody waits for the answers of some requests, which are done all the same."""
        trouble = self._world.machine.trouble
        trouble.unanswered = 0.4 * self._random.random()
        await asyncio.sleep(self._duration(6.0))
        trouble.unanswered = 0.0

    async def _driver_blind(self) -> None:
        trouble = self._world.machine.trouble
        trouble.blind = 0.7 * self._random.random()
        await asyncio.sleep(self._duration(6.0))
        trouble.blind = 0.0

    async def _box_dies(self) -> None:
        machine = self._world.machine
        alive = [id for id, box in machine.boxes.items() if box.whole and box.alive]
        unbound = [id for id in alive if machine.boxes[id].session is None]
        if unbound and self._random.random() < 0.5:  # there are few: those of the pool
            alive = unbound
        if alive:
            machine.kill(self._random.choice(alive))

    async def _clock_jump(self) -> None:
        seconds = self._random.choice((-20.0, -3.0, -0.5, 0.5, 3.0, 20.0)) * self._random.random()
        self._world.clock.jump(timedelta(seconds=seconds))

    async def _template(self) -> None:
        """The warm template is put again with another size of its pool: its sandboxes roll over."""
        world = self._world
        one = world.managers.some()
        if one is None:
            return
        spec = {
            "sessionTimeout": "12s",
            "maxSessionDuration": "60s",
            "suspendAfter": "3s",
            "warmPoolSize": self._random.randrange(5),
        }
        document = {"kind": "CodeInterpreter", "spec": {"template": {}, **spec}}

        async def put() -> None:
            await world.network.call(
                world.loop.world,
                one.process,
                lambda: one.manager.service.catalog.put(world.keys["warm"], document),
            )

        try:
            await put()
        except Exception:  # what it meets is what it is for
            pass
