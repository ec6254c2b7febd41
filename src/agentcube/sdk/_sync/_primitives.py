"""What the two halves do differently. This file and its async counterpart are both written by hand."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.http import SENDING
from agentcube.sdk._core.sources import Source

Lock = threading.Lock
sleep = time.sleep
T = TypeVar("T")
log = logging.getLogger("agentcube.sdk")


def token_of(auth: AuthProvider) -> str:
    """The provider's token. Raises InvalidArgument for a provider that is asynchronous."""
    token = auth.get_token()
    if isinstance(token, str):
        return token
    raise InvalidArgument(f"{type(auth).__name__} is asynchronous: use it with the Async clients")


def body_of(upload: Source) -> Iterator[bytes]:
    """The body of an upload."""
    upload.rewind()
    while chunk := upload.read():
        yield chunk


def traced(sending: Callable[[], None]) -> Callable[[str, Any], None]:
    """The HTTP client's trace function that calls `sending` when a request goes out."""

    def trace(name: str, info: Any) -> None:
        if name.endswith(SENDING):
            sending()

    return trace


def called(callback: Callable[[T], object] | None, argument: T) -> None:
    """Call the user's function, if there is one."""
    if callback is not None:
        callback(argument)


def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a function that may block: here the caller waits."""
    return function(*arguments)


def whatever_happens(work: Callable[[], object], what: str, *, within_s: float) -> None:
    """Do `work`, whose requests have deadlines of their own. A failure is logged: the caller has its exception."""
    try:
        work()
    except Exception as failure:
        log.warning("%s (bounded at %g s): %s", what, within_s, failure or type(failure).__name__)
