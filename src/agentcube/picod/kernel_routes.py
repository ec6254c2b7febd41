"""`/api/kernels` over HTTP: what a client asks for, checked, and what it is told."""

from __future__ import annotations

import re
from typing import Any

from agentcube.picod import fields
from agentcube.picod.events import EventStream
from agentcube.picod.kernel import LANGUAGES, Kernel
from agentcube.picod.kernel_run import Execution, Order
from agentcube.picod.kernels import Kernels
from agentcube.picod.messages import Request, Response
from agentcube.picod.problems import Problem
from agentcube.picod.process_routes import GRACE_MAX_S, TIMEOUT_MAX_S, body_digest, idempotency_key
from agentcube.picod.routing import Access, Route

CODE_BYTES_MAX = 8 << 20
WAIT_MAX_S = 600.0
INTERRUPT_GRACE_S = 5.0
INTERRUPT_GRACE_MAX_S = 600.0
_ID = re.compile(r"[a-z0-9-]{1,40}")
_DESIGN = ("language", "working_dir", "env")
_EXECUTE = (*("code", "timeout", "grace", "wait", "store_history", "silent", "create", "interrupt_grace"),)


class KernelRoutes:
    """The handlers."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def rows(self) -> tuple[Route, ...]:
        """What is served here."""
        one = "/api/kernels/{id}"
        return (
            Route("POST", "/api/kernels", Access.SESSION, self.create),
            Route("GET", "/api/kernels", Access.SESSION, self.list),
            Route("GET", one, Access.SESSION, self.get),
            Route("PUT", one, Access.SESSION, self.put),
            Route("DELETE", one, Access.SESSION, self.delete),
            Route("POST", one + "/execute", Access.SESSION, self.execute),
            Route("GET", one + "/executions/{execution}", Access.SESSION, self.execution),
            Route("POST", one + "/interrupt", Access.SESSION, self.interrupt),
            Route("POST", one + "/restart", Access.SESSION, self.restart),
        )

    def _kernel(self, request: Request) -> Kernel:
        return self._kernels.get(request.params["id"])

    async def create(self, request: Request, response: Response) -> None:
        """`POST /api/kernels`."""
        kernel, _ = await self._create(await request.json(), "")
        await response.json(kernel.document(), 201, (_location(kernel),))

    async def put(self, request: Request, response: Response) -> None:
        """`PUT …/{id}`: as often as anybody likes."""
        id = _checked_id(request.params["id"])
        kernel, fresh = await self._create(await request.json(), id)
        await response.json(kernel.document(), 201 if fresh else 200, (_location(kernel),) if fresh else ())

    async def _create(self, body: dict[str, Any], id: str) -> tuple[Kernel, bool]:
        fields.only(body, _DESIGN)
        language = body.get("language", "python")
        if language not in LANGUAGES:
            raise Problem("invalid", f"language must be {' or '.join(LANGUAGES)}")
        return await self._kernels.create(
            language, fields.text(body, "working_dir"), fields.environment(body), id
        )

    async def list(self, request: Request, response: Response) -> None:
        """`GET /api/kernels`."""
        await response.json({"kernels": [kernel.document(measured=True) for kernel in self._kernels.list()]})

    async def get(self, request: Request, response: Response) -> None:
        """`GET …/{id}`."""
        await response.json(self._kernel(request).document(measured=True))

    async def delete(self, request: Request, response: Response) -> None:
        """`DELETE …/{id}`."""
        await self._kernels.delete(self._kernel(request))
        await response.empty()

    async def restart(self, request: Request, response: Response) -> None:
        """`POST …/restart`."""
        kernel = self._kernel(request)
        await kernel.start()
        await response.json(kernel.document())

    async def interrupt(self, request: Request, response: Response) -> None:
        """`POST …/interrupt`: answers when the cell has ended, or the kernel was killed."""
        kernel, body = self._kernel(request), await request.json()
        fields.only(body, ("execution", "grace"))
        grace_s = _grace(body, "grace")
        await kernel.interrupt(fields.text(body, "execution") or None, grace_s)
        await response.json(kernel.document())

    async def execute(self, request: Request, response: Response) -> None:
        """`POST …/execute`: run a cell; what it does is the answer."""
        key, body = idempotency_key(request), await request.json()
        order = _order(body, key)
        kernel = self._kernels.find(request.params["id"])
        execution = kernel.find_key(order) if kernel is not None else None
        if execution is None:
            kernel = await self._usable(kernel, request.params["id"], body.get("create"))
            execution = kernel.find_key(order) or await kernel.execute(order)
        request.close()
        await self._stream(request, response, execution, 0)

    async def _usable(self, kernel: Kernel | None, id: str, create: Any) -> Kernel:
        """The kernel to run in, made or restarted where the call says so."""
        if create is None:
            return kernel or self._kernels.get(id)
        if not isinstance(create, dict):
            raise Problem("invalid", 'create must be an object, such as {"language": "python"}')
        kernel, _ = await self._create(create, _checked_id(id))
        if kernel.state == "dead":
            await kernel.start(only_if_dead=True)
        return kernel

    async def execution(self, request: Request, response: Response) -> None:
        """`GET …/executions/{execution}`: its events again, from one on."""
        execution = self._kernel(request).get_execution(request.params["execution"])
        after = fields.number(request.query(), "after", 0)
        if after > execution.last:
            raise Problem("invalid", f"after must be the number of an event, at most {execution.last}")
        await self._stream(request, response, execution, after)

    async def _stream(self, request: Request, response: Response, execution: Execution, after: int) -> None:
        reader = execution.attach(after)
        try:
            await execution.stream(await EventStream.open(request, response), reader, after)
        finally:
            execution.detach(reader)


def _location(kernel: Kernel) -> tuple[bytes, bytes]:
    return (b"location", b"kernels/" + kernel.id.encode("ascii"))


def _checked_id(id: str) -> str:
    if not _ID.fullmatch(id):
        raise Problem("invalid", "the id of a kernel is 1 to 40 of a-z, 0-9 and -")
    return id


def _grace(body: dict[str, Any], name: str) -> float:
    if name not in body:
        return INTERRUPT_GRACE_S
    return fields.duration(name, body[name], INTERRUPT_GRACE_MAX_S, zero=True)


def _order(body: dict[str, Any], key: str | None) -> Order:
    fields.only(body, _EXECUTE)
    code = fields.text(body, "code")
    if "code" not in body:
        raise Problem("invalid", "code must be the text of the cell")
    try:
        size = len(code.encode("utf-8"))
    except UnicodeEncodeError:
        raise Problem("invalid", "code: half of a surrogate pair is no text") from None
    if size > CODE_BYTES_MAX:
        raise Problem(
            "body_too_large", f"a cell may have {CODE_BYTES_MAX >> 20} MiB; write larger data to a file"
        )
    timeout, grace, wait = body.get("timeout"), body.get("grace", "0s"), body.get("wait", "0s")
    return Order(
        code,
        timeout_s=None if timeout in (None, "") else fields.duration("timeout", timeout, TIMEOUT_MAX_S),
        grace_s=fields.duration("grace", grace, GRACE_MAX_S, zero=True),
        wait_s=fields.duration("wait", wait, WAIT_MAX_S, zero=True),
        interrupt_grace_s=_grace(body, "interrupt_grace"),
        store_history=fields.flag(body, "store_history", default=True),
        silent=fields.flag(body, "silent"),
        key=key,
        digest=b"" if key is None else body_digest(body),
    )
