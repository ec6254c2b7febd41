"""The manager's use cases for templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from agentcube.errors import TemplateNotFound
from agentcube.manager.pools import Pools
from agentcube.manager.templates import TemplatePolicy, template_of
from agentcube.model.template import Kind, Template, TemplateKey
from agentcube.ports.store import TemplateStore

log = structlog.get_logger(__name__)


class Catalog:
    """Puts, finds and deletes templates. Live sessions keep what they were made from."""

    def __init__(self, store: TemplateStore, pools: Pools, policy: TemplatePolicy) -> None:
        self._store = store
        self._pools = pools
        self.policy = policy
        """What this machine allows; the manager completes it once it knows its driver's powers."""

    async def put(self, key: TemplateKey, document: Mapping[str, Any]) -> tuple[Template, bool]:
        """Store the manifest; the template, and whether it is new. Its pool follows. Raises Invalid."""
        template = template_of(document, key, self.policy)
        try:
            await self._store.get_template(key)
            new = False
        except TemplateNotFound:
            new = True
        stored = await self._store.put_template(template)
        self._pools.wake()
        log.info("template put", template=str(key), generation=stored.generation)
        return stored, new

    async def get(self, key: TemplateKey) -> Template:
        """Raises TemplateNotFound."""
        return await self._store.get_template(key)

    async def list(self, *, kind: Kind | None = None, namespace: str | None = None) -> Sequence[Template]:
        """Templates by namespace and name."""
        return await self._store.list_templates(kind=kind, namespace=namespace)

    async def delete(self, key: TemplateKey) -> None:
        """Forget the template and drain its pool. Raises TemplateNotFound."""
        await self._store.delete_template(key)
        self._pools.wake()
        log.info("template deleted", template=str(key))
