"""`apply`, `get` and `delete`: templates as their manifests, and what there is of everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentcube.cli.inputs import MANIFEST_BYTES_MAX, NamespaceOption, OutputOption, connect, read_text
from agentcube.cli.render import Output, as_json, line, plain, table
from agentcube.cli.sessions import print_sessions
from agentcube.errors import Invalid, NotFound
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.requests import address_of
from agentcube.sdk._core.results import TemplateInfo
from agentcube.wire.names import BUILT_IN_NAMESPACE, PLURALS

if TYPE_CHECKING:
    from agentcube.sdk import AgentCube

DOCUMENTS_MAX = 100
LISTED = [*PLURALS.values(), "pools", "sessions"]
DELETED = ["agent-runtime", "code-interpreter", "session"]

_KIND_OF = {
    alias: kind
    for kind, plural in PLURALS.items()
    for alias in (kind.lower(), f"{kind.lower()}s", plural, plural.removesuffix("s"))
}


def apply(
    ctx: typer.Context,
    file: Annotated[
        str, typer.Option("--file", "-f", help="YAML or JSON, with one or more manifests; - for stdin.")
    ],
    namespace: NamespaceOption = BUILT_IN_NAMESPACE,
) -> None:
    """Create or replace AgentRuntimes and CodeInterpreters from manifests.

    All documents are checked before the first is sent. `--namespace` is for manifests that name none.
    """
    manifests = _manifests(file, namespace)
    with connect(ctx) as cube:
        for manifest in manifests:
            done = cube.templates.apply(manifest, namespace=namespace)
            line(f"{done.kind} {done.namespace}/{done.name} {'created' if done.created else 'configured'}")


def get(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(help=" | ".join(LISTED), autocompletion=lambda: LISTED)],
    name: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace. Templates: otherwise `default`.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show templates, pools or sessions."""
    kind = _KIND_OF.get(what.lower())
    with connect(ctx) as cube:
        if kind:
            _get_templates(cube, kind, name, namespace or BUILT_IN_NAMESPACE, output)
        elif what in ("session", "sessions"):
            if name and output is Output.JSON:
                as_json(cube.sessions.get(name).raw)
                return
            found = [cube.sessions.get(name)] if name else list(cube.sessions.list(namespace=namespace))
            print_sessions(found, output)
        elif what in ("pool", "pools"):
            _get_pools(cube, name, namespace, output)
        else:
            raise InvalidArgument(f"there is no {what!r} to get: it is one of {', '.join(LISTED)}")


def delete(
    ctx: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="KIND", help=" | ".join(DELETED), autocompletion=lambda: DELETED)
    ],
    name: Annotated[str, typer.Argument(help="Its name; of a session, its id.")],
    namespace: NamespaceOption = BUILT_IN_NAMESPACE,
) -> None:
    """Delete a template, whose sessions live on, or a session."""
    kind = _KIND_OF.get(what.lower())
    with connect(ctx) as cube:
        if kind:
            cube.templates.delete(kind, name, namespace=namespace)
            line(f"{kind} {namespace}/{name} deleted")
        elif what in ("session", "sessions"):
            cube.sessions.delete(name)
            line(f"session {name} deleted")
        else:
            raise InvalidArgument(f"a {what!r} cannot be deleted: it is one of {', '.join(DELETED)}")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command: Callable[..., None]
    for command in (apply, get, delete):
        app.command()(command)


def _manifests(file: str, namespace: str) -> list[Mapping[str, Any]]:
    """The documents of a file, each of which names something that can be applied. Raises Invalid."""
    import yaml  # a tenth of the time that this program takes to start

    name = "standard input" if file == "-" else file
    try:
        documents = [d for d in _load(read_text(file, MANIFEST_BYTES_MAX)) if d is not None]
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Invalid(f"{name}{place}: no valid YAML: {plain(exc.problem or str(exc))}") from None
    except yaml.YAMLError as exc:
        raise Invalid(f"{name}: no valid YAML: {plain(str(exc))}") from None
    except RecursionError:
        raise Invalid(f"{name} is nested too deeply") from None
    if not documents:
        raise Invalid(f"{name} has no manifest in it")
    if len(documents) > DOCUMENTS_MAX:
        raise Invalid(f"{name} has more than {DOCUMENTS_MAX} documents")
    for number, document in enumerate(documents, 1):
        if not isinstance(document, dict):
            raise Invalid(f"{name}, document {number}: a manifest is a mapping with kind, metadata and spec")
        try:
            address_of(document, namespace)
        except InvalidArgument as exc:
            raise Invalid(f"{name}, document {number}: {exc.detail}") from None
    return documents


def _load(text: str) -> Iterator[Any]:
    """YAML documents as the values that JSON has: a date is a text, as in Kubernetes."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Without the one type that JSON lacks."""

        yaml_implicit_resolvers = {  # noqa: RUF012  # as the base class has it
            first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return yaml.load_all(text, Loader)


def _get_templates(cube: AgentCube, kind: str, name: str | None, namespace: str, output: Output) -> None:
    found: list[TemplateInfo]
    if name:
        found = [cube.templates.get(kind, name, namespace=namespace)]
    else:
        found = list(cube.templates.list(kind, namespace=namespace))
    if output is Output.JSON:
        as_json(found[0].manifest if name else [template.manifest for template in found])
    else:
        table(("KIND", "NAMESPACE", "NAME"), ((t.kind, t.namespace, t.name) for t in found))


def _get_pools(cube: AgentCube, name: str | None, namespace: str | None, output: Output) -> None:
    found = [
        pool
        for pool in cube.pools.list()
        if name in (None, pool.name) and namespace in (None, pool.namespace)
    ]
    if name and not found:
        raise NotFound(f"there is no pool {name!r}")
    if output is Output.JSON:
        as_json([pool.raw for pool in found])
        return
    table(
        ("KIND", "NAMESPACE", "NAME", "TARGET", "READY", "STARTING", "CLAIMS", "MISSES", "LAST ERROR"),
        (
            (p.kind, p.namespace, p.name, p.target, p.ready, p.starting, p.claims, p.misses, p.last_error)
            for p in found
        ),
    )
