"""What may be tuned about the Redis store; read from the environment once, by whoever composes the process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RedisSettings(BaseSettings):
    """Where the server is comes by URL (`address.parse_address`); this is the rest. Times are seconds."""

    model_config = SettingsConfigDict(env_prefix="AGENTCUBE_REDIS_", frozen=True, extra="forbid")

    prefix: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="Of every key, as `{prefix}:…`: systems that share a server each take their own.",
        ),
    ] = "agentcube"
    password_file: Annotated[
        Path | None, Field(description="File with the password; unlike the URL, no process list shows it.")
    ] = None
    sentinel_user: Annotated[str, Field(description="User at the Sentinels, when they ask for one.")] = ""
    sentinel_password_file: Annotated[
        Path | None, Field(description="File with the password for the Sentinels.")
    ] = None
    tls_ca_file: Annotated[
        Path | None, Field(description="Whom to trust with `rediss`; otherwise the machine's authorities.")
    ] = None
    tls_cert_file: Annotated[Path | None, Field(description="Our certificate, for servers that ask.")] = None
    tls_key_file: Annotated[Path | None, Field(description="The key of `tls_cert_file`.")] = None

    wait_replicas: Annotated[
        int, Field(ge=0, description="Replicas that must have a new session before it is answered (WAIT).")
    ] = 0
    wait_s: Annotated[
        Positive,
        Field(
            description="How long `wait_replicas` may hold a creation up; then it goes on, with a warning."
        ),
    ] = 0.1

    connect_timeout_s: Annotated[Positive, Field(description="To find, reach and prepare a server.")] = 5.0
    heartbeat_s: Annotated[
        Positive, Field(description="Between two looks at the server's clock, which also find a dead link.")
    ] = 1.0
    answer_timeout_s: Annotated[
        Positive, Field(description="For an answer; then the link is given up. Above a fork of a big server.")
    ] = 3.0
    outage_wait_s: Annotated[
        Positive,
        Field(
            description="How long calls wait for a lost server, from its loss on; later ones fail at once."
        ),
    ] = 1.0
    blind_s: Annotated[
        Positive, Field(description="How long known sessions are served while the server is out of reach.")
    ] = 30.0
    pending_max: Annotated[Count, Field(description="Calls on their way; more are refused.")] = 10_000
    table_max: Annotated[
        Count, Field(description="Sessions kept in memory for the Router, some 4 KB each; the oldest go.")
    ] = 100_000
