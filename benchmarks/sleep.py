"""Sleep on one machine: suspending, and requests that wake beside the same requests to an awake session.

`python -m benchmarks.sleep [ROUNDS]` starts a real server (embedded store, local driver) and prints a table. Within a
round the awake and the sleeping request follow each other, so that both meet the same machine: read the difference.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2

from benchmarks.sessions import create, delete, execute, percentile, report, server, timed

OTHERS = 50
AT_ONCE = 16


def suspend(client: httpx2.Client, id: object) -> None:
    answer = client.post(f"/v1/sessions/{id}/suspend")
    assert answer.status_code == 200 and answer.json()["phase"] == "Paused", answer.text


def resume(client: httpx2.Client, id: object) -> None:
    answer = client.post(f"/v1/sessions/{id}/resume")
    assert answer.status_code == 200 and answer.json()["phase"] == "Ready", answer.text


def health(client: httpx2.Client, id: object) -> None:
    base = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/health"
    assert client.get(base, headers={"x-agentcube-session-id": str(id)}).status_code == 200


def together(client: httpx2.Client, id: object) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: health(client, id), range(AT_ONCE)))


def compared(client: httpx2.Client, id: object, what: str, rounds: int, ask: Callable[[], object]) -> None:
    """The request to the session when awake, and the first one when it sleeps."""
    awake, asleep = [], []
    ask()
    for _ in range(rounds):
        awake.append(timed(ask))
        suspend(client, id)
        asleep.append(timed(ask))
        time.sleep(0.02)
    report(f"{what}, awake", awake)
    report(f"{what}, asleep: it wakes first", asleep)
    added = (percentile(asleep, q) - percentile(awake, q) for q in (0.5, 0.95, 0.99))
    print(f"| added by the wake | | {' / '.join(f'{s * 1000:.2f}' for s in added)} | |", flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    print(
        f"machine: {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    with server(0) as client:
        sessions = [create(client) for _ in range(OTHERS + 1)]
        id, others = sessions[0]["id"], [s["id"] for s in sessions[1:]]
        facts = sessions[0]["sandbox"]["facts"]  # type: ignore[index]
        if facts["sleep"] == "none":
            sys.exit("nothing on this machine can freeze a sandbox")
        print(f"sleep: {facts['sleep']}; {OTHERS} other sessions sleep meanwhile\n")
        print("| what | n | p50 / p95 / p99 ms | |\n|---|---|---|---|")
        report(
            f"suspend through the API, {OTHERS} sessions in turn",
            [timed(lambda s=s: suspend(client, s)) for s in others],
        )  # type: ignore[misc]
        pairs = [
            (timed(lambda: suspend(client, id)), timed(lambda: resume(client, id))) for _ in range(rounds)
        ]
        report("suspend through the API, one session", [one for one, _ in pairs])
        report("resume through the API", [other for _, other in pairs])
        compared(client, id, "PicoD health through the Router", rounds, lambda: health(client, id))
        compared(client, id, "exec `true`", rounds, lambda: execute(client, id, "true"))
        compared(
            client,
            id,
            f"{AT_ONCE} requests at once, until the last answer",
            rounds // 5,
            lambda: together(client, id),
        )
        for session in sessions:
            delete(client, session["id"])


if __name__ == "__main__":
    main()
