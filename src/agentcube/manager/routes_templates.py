"""Routes of templates and their pools."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from agentcube.errors import Invalid, NotFound
from agentcube.manager.manager import Service
from agentcube.manager.present import manifest_of, pool_body
from agentcube.manager.problem_docs import answers
from agentcube.manager.templates import key_of
from agentcube.model.template import Kind, TemplateKey
from agentcube.wire.bodies import PoolPage, TemplatePage
from agentcube.wire.manifests import load_document
from agentcube.wire.names import KINDS

Plural = Annotated[str, Path(description="agent-runtimes or code-interpreters")]
Name = Annotated[str, Path(max_length=253)]
_YAML_TYPES = {"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"}
_JSON_TYPES = {"application/json", ""}
_MANIFEST = {
    "type": "object",
    "description": "An AgentRuntime or CodeInterpreter, as `kubectl` would apply it.",
    "required": ["spec"],
    "properties": {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": {"type": "object"},
    },
}
_MANIFEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _MANIFEST}, "application/yaml": {"schema": _MANIFEST}},
    }
}


def template_routes(service: Service) -> APIRouter:
    """`/v1/namespaces/{namespace}/{plural}`."""
    routes = APIRouter(prefix="/v1/namespaces/{namespace}/{plural}", tags=["Templates"])

    @routes.get("", summary="List templates", responses=answers(400, 401, 404))
    async def list_templates(
        namespace: Name, plural: Plural, limit: Annotated[int, Query(ge=1)] = 1000
    ) -> TemplatePage:
        """Manifests by name. All of them: `limit` is accepted and has nothing to cut yet."""
        found = await service.catalog.list(kind=_kind(plural), namespace=namespace)
        return TemplatePage(items=[manifest_of(t) for t in found])

    @routes.put(
        "/{name}",
        summary="Put a template",
        responses={**answers(400, 401, 404), 201: {"description": "It is new."}},
        openapi_extra=_MANIFEST_BODY,
    )
    async def put_template(
        namespace: Name, plural: Plural, name: Name, request: Request, response: Response
    ) -> dict[str, Any]:
        """Stores the manifest (JSON or YAML). Live sessions keep what they have; a pool is rolled."""
        key = _key(namespace, plural, name)
        # In a thread: a long one takes PyYAML the better part of a second.
        document = await asyncio.to_thread(load_document, await request.body(), as_yaml=_is_yaml(request))
        template, new = await service.catalog.put(key, document)
        response.status_code = 201 if new else 200
        return manifest_of(template)

    @routes.get("/{name}", summary="Get a template", responses=answers(401, 404))
    async def get_template(namespace: Name, plural: Plural, name: Name) -> dict[str, Any]:
        """The manifest as it was put, with its generation."""
        return manifest_of(await service.catalog.get(_key(namespace, plural, name)))

    @routes.delete("/{name}", status_code=204, summary="Delete a template", responses=answers(401, 404))
    async def delete_template(namespace: Name, plural: Plural, name: Name) -> None:
        """Live sessions go on; the pool is drained."""
        await service.catalog.delete(_key(namespace, plural, name))

    return routes


def pool_routes(service: Service) -> APIRouter:
    """`/v1/pools`."""
    routes = APIRouter(tags=["Pools"])

    @routes.get("/v1/pools", summary="List warm pools", responses=answers(401))
    async def list_pools() -> PoolPage:
        """Per template: the aim, what is ready and starting, claims and misses, how long creations waited."""
        return PoolPage(items=[pool_body(report) for report in await service.pools()])

    return routes


def _kind(plural: str) -> Kind:
    if plural not in KINDS:
        raise NotFound(f"there is no {plural[:64]!r}; there are {' and '.join(KINDS)}")
    return Kind(KINDS[plural])


def _key(namespace: str, plural: str, name: str) -> TemplateKey:
    return key_of(_kind(plural), namespace, name)


def _is_yaml(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in _YAML_TYPES:
        return True
    if media_type in _JSON_TYPES or media_type.endswith("+json"):
        return False
    raise Invalid(f"a manifest is application/json or application/yaml, not {media_type[:64]!r}")
