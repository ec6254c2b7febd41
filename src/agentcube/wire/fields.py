"""Field types that bodies and manifests share: names, durations, text maps, quantities."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from agentcube.durations import parse_duration
from agentcube.wire.quantities import parse_bytes, parse_count, parse_cpu_millis

T = TypeVar("T", str, str | None)

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

SECONDS_MAX = 366 * 86_400  # a year: longer is a mistake in the unit, and timedelta stays exact
METADATA_MAX, METADATA_KEY_MAX, METADATA_VALUE_MAX = 64, 128, 1024
ENV_MAX, ENV_NAME_MAX, ENV_BYTES_MAX = 256, 256, 64 * 1024  # an exec's arguments are bounded at 128 KiB each


def dns_label(text: str) -> str:
    """The text, when it is a DNS label (RFC 1123). Raises ValueError."""
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{text[:70]!r} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )
    return text


def _go_duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError('a duration is text such as "90s" or "1h30m"')
    return _positive(parse_duration(value))


def _seconds_or_duration(value: Any) -> timedelta:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _positive(float(value))
    if isinstance(value, str | timedelta):
        return _go_duration(value)
    raise ValueError('a duration is a number of seconds or text such as "90s" or "1h30m"')


def _positive(seconds: float) -> timedelta:
    if not math.isfinite(seconds) or not 0 < seconds <= SECONDS_MAX:
        raise ValueError("a duration must be more than nothing and at most 366 days")
    return timedelta(seconds=seconds)


def has_lone_surrogate(text: str) -> bool:
    """Whether `text` has half of a surrogate pair: JSON can say that, and no answer could repeat it."""
    return _SURROGATE.search(text) is not None


def _metadata(value: dict[str, T]) -> dict[str, T]:
    if len(value) > METADATA_MAX:
        raise ValueError(f"at most {METADATA_MAX} entries")
    for key, text in value.items():
        if not 0 < len(key) <= METADATA_KEY_MAX or len(text or "") > METADATA_VALUE_MAX:
            raise ValueError(
                f"keys have 1 to {METADATA_KEY_MAX} characters, values at most {METADATA_VALUE_MAX}"
            )
        if has_lone_surrogate(key) or has_lone_surrogate(text or ""):
            raise ValueError("half of a surrogate pair is no text")
    return value


def check_env(value: dict[str, str]) -> dict[str, str]:
    """The variables, when a process can be given them. Raises ValueError."""
    if len(value) > ENV_MAX:
        raise ValueError(f"at most {ENV_MAX} variables")
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name) or len(name) > ENV_NAME_MAX:
            raise ValueError(f"{name[:40]!r} is not a name for an environment variable")
        if "\0" in text:
            raise ValueError(f"the value of {name} has a NUL in it")
        if has_lone_surrogate(text):
            raise ValueError(f"the value of {name} has half of a surrogate pair in it")
    if sum(len(n.encode()) + len(t.encode()) for n, t in value.items()) > ENV_BYTES_MAX:
        raise ValueError(f"together at most {ENV_BYTES_MAX} bytes")
    return value


def _quantity(parse: Any) -> Any:
    return BeforeValidator(lambda value: parse(value))


DnsLabel = Annotated[str, AfterValidator(dns_label), Field(examples=["my-interpreter"])]
GoDuration = Annotated[
    timedelta,
    BeforeValidator(_go_duration),
    WithJsonSchema({"type": "string", "examples": ["15m"], "description": "Go style duration."}),
]
Seconds = Annotated[
    timedelta,
    BeforeValidator(_seconds_or_duration),
    PlainSerializer(lambda value: value.total_seconds(), return_type=float),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}],
            "examples": [900, "15m"],
            "description": "Seconds, or a Go style duration.",
        }
    ),
]
Metadata = Annotated[dict[str, str], AfterValidator(_metadata)]
MetadataPatch = Annotated[dict[str, str | None], AfterValidator(_metadata)]
Env = Annotated[dict[str, str], AfterValidator(check_env)]
_QUANTITY = {"anyOf": [{"type": "string"}, {"type": "number"}]}
Bytes = Annotated[int, _quantity(parse_bytes), WithJsonSchema({**_QUANTITY, "examples": ["512Mi"]})]
CpuMillis = Annotated[int, _quantity(parse_cpu_millis), WithJsonSchema({**_QUANTITY, "examples": ["500m"]})]
Count = Annotated[int, _quantity(parse_count), WithJsonSchema({**_QUANTITY, "examples": [512]})]
