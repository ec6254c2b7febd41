"""What a listing asks for: the same bounds and the same matches in every store. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentcube.errors import Invalid
from agentcube.model.session import Session
from agentcube.model.template import Kind, Template
from agentcube.ports.store import SessionQuery

LIST_MAX = 1000


def check_limit(query: SessionQuery) -> None:
    """Raises Invalid for a limit out of range."""
    if not 1 <= query.limit <= LIST_MAX:
        raise Invalid(f"limit is {query.limit}; give 1 to {LIST_MAX}")


def matches(session: Session, query: SessionQuery) -> bool:
    """Whether the query asks for this session; its cursor aside."""
    return (
        query.owner in (None, session.owner)
        and query.kind in (None, session.template.kind)
        and query.namespace in (None, session.template.namespace)
        and query.phase in (None, session.phase)
        and query.metadata.items() <= session.metadata.items()
    )


def chosen_templates(
    templates: Iterable[Template], *, kind: Kind | None, namespace: str | None
) -> Sequence[Template]:
    """Those of the kind and namespace, if given, by namespace and name."""
    found = (t for t in templates if kind in (None, t.key.kind) and namespace in (None, t.key.namespace))
    return sorted(found, key=lambda t: (t.key.namespace, t.key.name, t.key.kind))
