"""The Workload Manager's settings: one frozen object, parsed once by whoever composes the process."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentcube.wire.names import PORTS_DOMAIN

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ManagerSettings(BaseSettings):
    """Limits and times. Every number says where it comes from; times are seconds."""

    model_config = SettingsConfigDict(env_prefix="AGENTCUBE_MANAGER_", frozen=True, extra="forbid")

    public_address: Annotated[str, Field(description="host:port of the Router, as clients reach it.")] = (
        "127.0.0.1:8080"
    )
    ports_domain: Annotated[
        str,
        Field(description="Below which exposed ports have host names of their own; empty: they have none."),
    ] = PORTS_DOMAIN
    replica: Annotated[
        str,
        Field(
            description="Names this process as the holder of leases, each start anew; a random name if empty."
        ),
    ] = ""
    replicated: Annotated[
        bool,
        Field(description="Other managers use this store, with drivers that reach the same sandboxes."),
    ] = False
    host_started_at: Annotated[
        datetime | None,
        Field(description="When this machine booted; sessions older than that died with it."),
    ] = None
    allow_host_paths: Annotated[
        tuple[Path, ...],
        Field(
            description="Directories below which templates may take images and mounts (--allow-host-path)."
        ),
    ] = ()

    start_timeout_s: Annotated[Positive, Field(description="For a cold start, as clients wait 120 s.")] = 60.0
    sleep_timeout_s: Annotated[
        Positive,
        Field(description="For suspending or waking a sandbox; below the Router's 60 s for a wake."),
    ] = 30.0
    delete_wait_s: Annotated[
        Positive, Field(description="How long DELETE waits for the end of what will end anyway.")
    ] = 20.0
    abandoned_s: Annotated[
        Positive,
        Field(description="A session whose client left before the answer, kept for its retry by key."),
    ] = 60.0
    lease_s: Annotated[
        Positive,
        Field(
            description="Of what a manager acts on or keeps: another takes over when it has died. Also the pause "
            "before a retry."
        ),
    ] = 3.0
    orphans_s: Annotated[
        Positive,
        Field(description="Between two looks for sandboxes of nobody; each reads every session."),
    ] = 60.0
    observe_s: Annotated[Positive, Field(description="Between two looks at live sandboxes.")] = 1.0
    observe_batch: Annotated[
        Count, Field(description="Sandboxes per look; one costs a poll of a pidfd, some 10 µs.")
    ] = 500

    starts_in_flight: Annotated[
        Count, Field(description="Cold starts at once: more only queue for the processors.")
    ] = 16
    ends_in_flight: Annotated[
        Count, Field(description="Sandboxes destroyed at once, when very many end together.")
    ] = 32
    refills_in_flight: Annotated[
        Count, Field(description="Pool starts at once: few, so that refills never starve live sessions.")
    ] = 2
    refill_backoff_max_s: Annotated[Positive, Field(description="Longest pause after failed refills.")] = 60.0
    sessions_max: Annotated[
        Count, Field(description="Sessions on record; an idle sandbox holds about 13 MB.")
    ] = 2000
    sessions_per_owner_max: Annotated[Count, Field(description="Sessions of one owner.")] = 2000
    creates_waiting_max: Annotated[
        Count, Field(description="Creations under way; more are told to wait.")
    ] = 256

    event_streams_max: Annotated[
        Count, Field(description="Streams of phase changes; each is a connection and some 50 KB.")
    ] = 1024
    event_streams_per_owner_max: Annotated[Count, Field(description="Streams of one caller.")] = 256

    body_bytes_max: Annotated[
        Count, Field(description="Of a request; manifests are far below etcd's 1.5 MiB.")
    ] = 1 << 20
