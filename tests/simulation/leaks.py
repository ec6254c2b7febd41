"""What is left once every session and every template is gone, which should be nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import World


def leaks(world: World) -> list[str]:
    """For people: each thing that is left."""
    left = []
    if world.machine.boxes:
        left.append(f"sandboxes {list(world.machine.boxes)}")
    if world.tables.records.sessions or world.tables.records.warm:
        left.append(f"records {list(world.tables.records.sessions)} {list(world.tables.records.warm)}")
    for one in world.managers.alive:
        counts = {
            "flights": one.manager._reconciler.flights,
            "creating": one.manager._admission._creating,
            "starting": len(one.manager._pools._starting),
            "doomed": len(one.manager._pools._doomed),
        }
        left += [f"{one.process}: {count} {name}" for name, count in counts.items() if count]
    for router in world.routers:
        engine = router.engine
        counts = {
            "in flight": engine.in_flight,
            "waiting": engine.waiting,
            "clients": len(engine.clients),
            "held bytes": engine.held_bytes,
            "shares": len(engine.limits),
            "wakes": len(engine.wakes._flights._flying),
            "rousing": len(engine.wakes._rousing),
            "suspicions": len(engine.suspicions._flying),
            "tasks": len(engine._tasks),
            "idle connections": engine.pools.idle,
        }
        left += [f"{router.process}: {count} {name}" for name, count in counts.items() if count]
    return left
