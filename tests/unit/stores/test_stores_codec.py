"""Records survive a round trip, and what cannot be read is named."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.errors import Invalid, StoreFailed
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.sandbox import Endpoint, HostMount, Isolation, Port, Resources, Sandbox
from agentcube.model.session import PhaseChange, Session
from agentcube.model.template import AuthMode, Kind, Template, TemplateKey, WarmPool
from agentcube.ports.store import Reservation
from agentcube.stores import codec
from agentcube.testing.samples import (
    full_resources,
    full_sandbox,
    full_session,
    full_template,
    sample_session,
    sample_template,
    sample_warm,
)

RESERVATION = Reservation(
    key="k ☃", fingerprint="f", session_id=SessionId("s"), expires_at=datetime(2026, 1, 1, tzinfo=UTC)
)

TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
TIMES = st.datetimes(
    min_value=datetime(1, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.just(UTC),
)
SPANS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10000))
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=3)
COUNTS = st.integers(0, 1 << 50)
KEYS = st.builds(
    TemplateKey, st.sampled_from(Kind), st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.just("x-1")
)
PORTS = st.lists(
    st.builds(Port, port=COUNTS, path_prefix=TEXTS, name=TEXTS, passes_credentials=st.booleans()), max_size=3
).map(tuple)
ENDPOINTS = st.builds(Endpoint, scheme=TEXTS, path=TEXTS, host=TEXTS, port=COUNTS)
RESOURCES = st.builds(
    Resources,
    cpu_millis=COUNTS,
    memory_bytes=COUNTS,
    pids_max=COUNTS,
    workspace_bytes=COUNTS,
    tmp_bytes=COUNTS,
)
SANDBOXES = st.builds(
    Sandbox,
    id=TEXTS.map(SandboxId),
    driver=TEXTS,
    handle=TEXTS,
    isolation=st.sampled_from(Isolation),
    picod=ENDPOINTS,
    ports=st.dictionaries(COUNTS, ENDPOINTS, max_size=2),
    facts=MAPS,
)
SESSIONS = st.builds(
    Session,
    id=TEXTS.map(SessionId),
    template=KEYS,
    generation=COUNTS,
    owner=TEXTS,
    phase=st.sampled_from(Phase),
    created_at=TIMES,
    last_activity_at=TIMES,
    expires_at=TIMES,
    idle_timeout=SPANS,
    suspend_after=st.none() | SPANS,
    auth_mode=st.sampled_from(AuthMode),
    reason=TEXTS,
    message=TEXTS,
    state_lost=st.booleans(),
    from_pool=st.booleans(),
    metadata=MAPS,
    env=MAPS,
    resources=st.none() | RESOURCES,
    routes=PORTS,
    sandbox=st.none() | SANDBOXES,
    due_at=st.none() | TIMES,
    history=st.lists(
        st.builds(
            PhaseChange, seq=COUNTS, phase=st.sampled_from(Phase), at=TIMES, reason=TEXTS, message=TEXTS
        ),
        max_size=3,
    ).map(tuple),
    revision=COUNTS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(SESSIONS)
def test_any_session_survives(session: Session) -> None:
    assert codec.session_from_text(codec.session_to_text(session), name="it") == session


@given(JSON.filter(lambda value: isinstance(value, dict)))
def test_any_manifest_survives(manifest: dict[str, Any]) -> None:
    template = sample_template(manifest=manifest)
    assert codec.template_from_text(codec.template_to_text(template), name="it") == template


@given(KEYS)
def test_any_template_key_survives(key: TemplateKey) -> None:
    assert codec.key_from_text(codec.key_to_text(key)) == key


def test_every_field_survives() -> None:
    session = full_session()
    assert codec.session_from_text(codec.session_to_text(session), name="it") == session
    template = full_template()
    assert codec.template_from_text(codec.template_to_text(template), name="it") == template
    for entry in (sample_warm(sandbox=full_sandbox()), sample_warm(state=WarmState.STARTING)):
        assert codec.warm_from_text(codec.warm_to_text(entry), name="it") == entry
    text = codec.reservation_to_text(RESERVATION)
    assert codec.reservation_from_text(text, name="it") == RESERVATION


@pytest.mark.parametrize(
    "full",
    [
        full_session(),
        full_template(),
        full_sandbox(),
        full_resources(),
        full_template().warm_pool,
        full_template().mounts[0],
        full_template().ports[0],
        full_sandbox().picod,
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_full_samples_leave_no_field_at_its_default(full: Any) -> None:
    """A field that somebody adds to the model fails here until the sample, and so the codec, has it."""
    for field in fields(full):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        assert getattr(full, field.name) != default, field.name


def test_the_samples_cover_every_record_type() -> None:
    assert {type(full_template().mounts[0]), type(full_template().warm_pool)} == {HostMount, WarmPool}
    assert {f.name for f in fields(WarmSandbox)} == {
        "id", "template", "generation", "state", "created_at", "sandbox",
    }  # fmt: skip


def test_times_are_stored_in_utc() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    session = sample_session(created_at=datetime(2026, 1, 1, 5, 30, tzinfo=east))
    read = codec.session_from_text(codec.session_to_text(session), name="it")
    assert read.created_at == session.created_at
    assert read.created_at.tzinfo is UTC


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), datetime.now(UTC), b"bytes"])
def test_a_manifest_that_json_cannot_hold_is_invalid(value: object) -> None:
    with pytest.raises(Invalid, match="JSON"):
        codec.template_to_text(Template(key=sample_template().key, manifest={"a": value}))


def test_a_newer_record_is_refused_by_name() -> None:
    newer = json.dumps({**json.loads(codec.session_to_text(full_session())), "v": 2})
    with pytest.raises(
        StoreFailed, match=r"session x in y was written by a newer AgentCube \(record version 2"
    ):
        codec.session_from_text(newer, name="session x in y")


def test_unknown_fields_are_ignored() -> None:
    session = full_session()
    record = {**json.loads(codec.session_to_text(session)), "later": 1}
    assert codec.session_from_text(json.dumps(record), name="it") == session


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"v": "1"}',
        '{"v": 1}',
        '{"v": null}',
        codec.session_to_text(full_session()).replace('"Ready"', '"Asleep"'),
        codec.session_to_text(full_session()).replace("+00:00", ""),
    ],
)
def test_a_damaged_record_is_refused_by_name(text: str) -> None:
    with pytest.raises(StoreFailed, match="session x is damaged"):
        codec.session_from_text(text, name="session x")


@pytest.mark.parametrize("text", ["", "a/b", "Wrong/a/b", "AgentRuntime/a/b/c"])
def test_a_damaged_key_is_refused(text: str) -> None:
    with pytest.raises(StoreFailed, match="key"):
        codec.key_from_text(text)
