"""Removing one sandbox, in a worker thread: what `launch` made of it, however much that is."""

from __future__ import annotations

import os

from agentcube.drivers.local import processes
from agentcube.drivers.local.launch import Launcher, Sockets, cgroup_paths
from agentcube.errors import DriverFailed
from agentcube.model.ids import SandboxId

_END_S = 10.0


def raze(made_by: Launcher, id: SandboxId, pidfd: int | None) -> None:
    """Kill and remove all that exists of the sandbox, the record last. Idempotent.

    Closes `pidfd`, a descriptor of its process 1; where that is None, it goes by the record.

    Raises:
        DriverFailed, OSError: something of it stands and is on record.
    """
    record = made_by.records.find(id)
    tree = made_by.cgroups
    try:
        tree.open(id, record.cgroups if record else cgroup_paths(tree, id)).kill()
        if record is not None and pidfd is None:
            pidfd = record.open_process()
        if pidfd is not None:
            processes.kill(pidfd)  # its pid namespace goes with it
            if not processes.has_ended(pidfd, _END_S):
                raise DriverFailed(f"sandbox {id}: process 1 does not end within {_END_S:g} s of SIGKILL")
    finally:
        if pidfd is not None:
            os.close(pidfd)
    tree.remove(id)
    Sockets.of(made_by.kit.folder, id).remove()
    made_by.workspaces.destroy(made_by.records.folder(id))
    made_by.records.remove(id)
    if record is not None:
        made_by.release(record.uid_base)
