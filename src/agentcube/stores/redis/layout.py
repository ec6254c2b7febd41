r"""Keys and records: how sessions, pool entries and reservations lie in the server.

All keys of a store begin with `{prefix}:`, whose braces make it one hash slot: a claim touches pool,
session, deadline and indexes, and must be one atomic step (docs/decisions/0018 says what that costs).

    s:ID         a session: "REVISION SANDBOX OWNER\n" and its codec text. The tracked keys
    created      ids by time of creation        owner:=OWNER  the same, of one owner
    active       ids by last activity           due           ids by deadline, those that are not leased
    leased       ids by the lease's end         leased-due    their deadlines
    bound        sandbox to the session that has it
    warm         pool entries by sandbox: "POOL\nSANDBOX-JSON\n" and the codec text
    ready:POOL   those of a template's generation that can be claimed, by time of creation
    templates    codec texts by key             generations   the last generation of each key
    key:DIGEST   a reservation: "EXPIRES\n" and its codec text
    meta         the schema's version, this store's id
    home         whose sandboxes it holds, where they live on one machine (`agentcube up`)

Times are whole microseconds since 1970, which a score holds exactly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from agentcube.errors import StoreFailed
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.stores import codec

SCHEMA = 1
"""Of keys and record heads; the codec texts have a version of their own each."""

NO_SANDBOX = "-"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Keys:
    """The names of a store's keys."""

    def __init__(self, prefix: str) -> None:
        self.base = f"{{{prefix}}}:"
        self.sessions = self.base + "s:"
        self.active = self.base + "active"
        self.warm = self.base + "warm"
        self.templates = self.base + "templates"
        self.generations = self.base + "generations"
        self.meta = self.base + "meta"
        self.home = self.base + "home"
        self.probe = self.base + "probe"


def owner_name(owner: str) -> str:
    """An owner as part of a key and a head: never empty, no spaces."""
    return "=" + quote(owner, safe="", errors="surrogatepass")


def sandbox_text(id: SandboxId) -> str:
    """A sandbox as a member and part of a head: no spaces."""
    return quote(id, safe="", errors="surrogatepass")


def sandbox_name(session: Session) -> str:
    """The session's sandbox as part of its head."""
    return NO_SANDBOX if session.sandbox is None else sandbox_text(session.sandbox.id)


def pool_name(template: TemplateKey, generation: int) -> str:
    """The pool that a template's generation is claimed from."""
    return f"{codec.key_to_text(template)}/{generation}"


def reservation_name(key: str) -> str:
    """A client's key as one of a fixed length."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def session_record(session: Session) -> bytes:
    """The session as it is stored. Raises Invalid for values that cannot be."""
    head = f"{session.revision} {sandbox_name(session)} {owner_name(session.owner)}"
    return f"{head}\n{codec.session_to_text(session)}".encode("ascii")


@dataclass(frozen=True, slots=True)
class Claiming:
    """The record of a session whose sandbox the claim will choose: what comes before and after it."""

    session: Session
    before: str
    after: str

    @classmethod
    def of(cls, session: Session) -> Claiming:
        """Raises Invalid for values that cannot be stored."""
        session = replace(session, sandbox=None, from_pool=True, revision=1)
        before, there, after = codec.session_to_text(session).partition('"sandbox":null')
        assert there
        return cls(session, f'{before}"sandbox":', after)

    def claimed(self, sandbox: bytes) -> Session:
        """The session with the sandbox whose JSON this is. Raises StoreFailed for a damaged one."""
        text = sandbox.decode("latin-1")
        return replace(self.session, sandbox=codec.sandbox_from_text(text, name="a pool entry"))


def session_of(record: bytes, active: bytes | float | None = None, *, id: SessionId) -> Session:
    """The session in a record, active no earlier than at the score `active`. Raises StoreFailed."""
    _, newline, body = record.partition(b"\n")
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        newline = b""
    if not newline:
        raise StoreFailed(f"session {id} is damaged: it does not read as a record")
    return with_activity(codec.session_from_text(text, name=f"session {id}"), active)


def warm_record(entry: WarmSandbox) -> tuple[str, str]:
    """The pool it can be claimed from, `-` for none, and the entry as it is stored."""
    ready = entry.state is WarmState.READY and entry.sandbox is not None
    pool = pool_name(entry.template, entry.generation) if ready else "-"
    sandbox = codec.sandbox_to_text(entry.sandbox) if entry.sandbox is not None else "-"
    return pool, f"{pool}\n{sandbox}\n{codec.warm_to_text(entry)}"


def warm_of(record: bytes, *, name: str) -> WarmSandbox:
    """The entry in a record. Raises StoreFailed."""
    return codec.warm_from_text(record.rpartition(b"\n")[2].decode("latin-1"), name=name)


def microseconds(at: datetime) -> int:
    """A time as a score."""
    return (at - _EPOCH) // _MICROSECOND


def moment(score: bytes | float) -> datetime:
    """A score as a time."""
    return _EPOCH + timedelta(microseconds=int(float(score)))


def score(at: datetime | None) -> str:
    """A time as a script takes it; None is ''."""
    return "" if at is None else str(microseconds(at))


def with_activity(session: Session, active: bytes | float | None) -> Session:
    """The session, active no earlier than at the score `active`."""
    if active is None or (at := moment(active)) <= session.last_activity_at:
        return session
    return replace(session, last_activity_at=at)
