"""Writes docs/reference/lifecycle.md from the transition table. `--check`: only say whether it differs."""

from __future__ import annotations

import sys
from pathlib import Path

from agentcube.model.lifecycle import IDLE, LIVE, TRANSITIONS, Phase, Trigger

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "lifecycle.md"

PHASES = {
    Phase.PENDING: "accepted; it has no sandbox yet",
    Phase.RUNNING: "its sandbox exists and is not yet bound to it or does not answer yet",
    Phase.READY: "requests are served",
    Phase.PAUSING: "its sandbox is being suspended; a request that comes now wakes it",
    Phase.PAUSED: "its sandbox sleeps with its state; a request wakes it",
    Phase.RESUMING: "its sandbox is being woken; requests wait",
    Phase.DELETING: "its time is up or somebody deleted it; its sandbox is being destroyed",
    Phase.DELETED: "nothing of it is left",
    Phase.FAILED: "it ended without being asked to; `reason` and `message` say why until it is deleted",
}
TRIGGERS = {
    Trigger.PROVISION: "the driver made its sandbox",
    Trigger.ANSWER: "the sandbox is bound to the session and answers",
    Trigger.SUSPEND: "it was idle for `suspend_after`, or somebody asked",
    Trigger.SUSPENDED: "the driver suspended the sandbox",
    Trigger.REVIVE: "the session was used before the sandbox was suspended, or that could not be done",
    Trigger.RESUME: "a request came, or somebody asked",
    Trigger.RESUMED: "the sandbox's processes go on",
    Trigger.RESUME_FAILED: "the sandbox could not be woken; the session is kept",
    Trigger.FAIL: "the sandbox did not start, died, or is not on record",
    Trigger.DELETE: "`ttl` or the idle timeout passed, or somebody deleted it",
    Trigger.DELETED: "its sandbox, memory and workspace included, is destroyed",
}

HEAD = """\
<!-- Made by tools/lifecycle_diagram.py from src/agentcube/model/lifecycle.py. Do not edit: run `make docs`. -->

# The life of a session

A session is in one of these phases; the API shows the phase by this name. Only the changes below ever happen,
each as a compare-and-swap on the session's record. A session that takes its sandbox from a warm pool begins as Running.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(
        [HEAD, *_diagram(), "", "## Phases", "", *_phases(), "", "## Changes", "", *_changes(), ""]
    )


def _diagram() -> list[str]:
    """Triggers that every live phase has are drawn once, from the box around them."""
    shared = {t: TRANSITIONS[Phase.PENDING, t] for t in Trigger if all((p, t) in TRANSITIONS for p in LIVE)}
    lines = [
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> Pending",
        "    [*] --> Running: from a pool",
        "    state Live {",
    ]
    for (phase, trigger), to in TRANSITIONS.items():
        if phase in LIVE and trigger not in shared:
            lines.append(f"        {phase} --> {to}: {trigger}")
    lines.append("    }")
    lines += [f"    Live --> {to}: {trigger}" for trigger, to in shared.items()]
    for (phase, trigger), to in TRANSITIONS.items():
        if phase not in LIVE:
            lines.append(f"    {phase} --> {to}: {trigger}")
    return [*lines, "    Deleted --> [*]", "```"]


def _phases() -> list[str]:
    rows = ["| Phase | Meaning | May end by idle timeout |", "|---|---|---|"]
    return rows + [f"| {p} | {PHASES[p]} | {'yes' if p in IDLE else 'no'} |" for p in Phase]


def _changes() -> list[str]:
    rows = ["| From | Trigger | To | When |", "|---|---|---|---|"]
    order = list(Phase)
    table = sorted(
        TRANSITIONS.items(), key=lambda row: (order.index(row[0][0]), list(Trigger).index(row[0][1]))
    )
    return rows + [f"| {p} | `{t}` | {to} | {TRIGGERS[t]} |" for (p, t), to in table]


def main() -> int:
    wanted = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE.name} does not match the transition table; run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
