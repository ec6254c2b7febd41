"""Pool entries and templates on the server. Claims make sessions and stand with those."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from agentcube.errors import Conflict, StaleRevision, TemplateNotFound
from agentcube.model.ids import SandboxId
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.template import Kind, Template, TemplateKey
from agentcube.stores import codec
from agentcube.stores.listing import chosen_templates
from agentcube.stores.redis import layout, scripts
from agentcube.stores.redis.client import Client
from agentcube.stores.redis.known import Known
from agentcube.stores.redis.layout import Keys, microseconds
from agentcube.stores.redis.link import Reply

_ATTEMPTS = 16  # races over one template are between people


class RedisPools:
    """Implements `ports.store.PoolStore` but for `claim_warm`, and `ports.store.TemplateStore`."""

    def __init__(self, client: Client, keys: Keys, known: Known) -> None:
        self._client = client
        self._keys = keys
        self._bell = known.bell

    async def put_warm(self, entry: WarmSandbox) -> None:
        reply = await self._client.run(scripts.PUT_WARM, *_places(entry))
        if reply[0] == b"bound":
            raise Conflict(f"sandbox {entry.id} belongs to a session", sandbox=entry.id)

    async def update_warm(self, entry: WarmSandbox) -> bool:
        reply = await self._client.run(scripts.UPDATE_WARM, *_places(entry))
        return bool(reply[0] == b"ok")

    async def list_warm(self, template: TemplateKey | None = None) -> Sequence[WarmSandbox]:
        words = await self._client.ask("HGETALL", self._keys.warm)
        entries = [layout.warm_of(record, name=f"pool entry {id.decode()}") for id, record in words.items()]
        return sorted(
            (e for e in entries if template in (None, e.template)), key=lambda e: (e.created_at, e.id)
        )

    async def remove_warm(self, id: SandboxId) -> bool:
        reply = await self._client.run(scripts.REMOVE_WARM, layout.sandbox_text(id))
        return bool(reply[0] == b"ok")

    def pool_changes(self) -> AsyncIterator[None]:
        return self._bell.listen()

    async def put_template(self, template: Template) -> Template:
        name = codec.key_to_text(template.key)
        for _ in range(_ATTEMPTS):
            text, generation = await self._client.ask_all(
                ("HGET", self._keys.templates, name), ("HGET", self._keys.generations, name)
            )
            last = int(generation or 0)
            if text is not None:
                known = _template(text, name)
                if replace(template, generation=known.generation) == known:
                    return known
            stored = replace(template, generation=last + 1)
            reply = await self._client.run(
                scripts.PUT_TEMPLATE, name, last, stored.generation, codec.template_to_text(stored)
            )
            if reply[0] == b"ok":
                return stored
        raise StaleRevision(f"{template.key} is changed by others all the time; try again")

    async def get_template(self, key: TemplateKey) -> Template:
        name = codec.key_to_text(key)
        text = await self._client.ask("HGET", self._keys.templates, name)
        if text is None:
            raise _absent(key)
        return _template(text, name)

    async def list_templates(
        self, *, kind: Kind | None = None, namespace: str | None = None
    ) -> Sequence[Template]:
        words = await self._client.ask("HGETALL", self._keys.templates)
        templates = [_template(text, name.decode()) for name, text in words.items()]
        return chosen_templates(templates, kind=kind, namespace=namespace)

    async def delete_template(self, key: TemplateKey) -> None:
        reply = await self._client.run(scripts.DELETE_TEMPLATE, codec.key_to_text(key))
        if reply[0] == b"absent":
            raise _absent(key)


def _places(entry: WarmSandbox) -> tuple[str, int, str, str]:
    """An entry as a script takes it."""
    assert (entry.sandbox is None) == (entry.state is WarmState.STARTING), entry
    pool, record = layout.warm_record(entry)
    return layout.sandbox_text(entry.id), microseconds(entry.created_at), pool, record


def _template(text: Reply, name: str) -> Template:
    return codec.template_from_text(text.decode("latin-1"), name=f"template {name}")


def _absent(key: TemplateKey) -> TemplateNotFound:
    return TemplateNotFound(f"there is no {key}")
