"""The one error of this package."""

from __future__ import annotations


class ProtocolError(Exception):
    """A peer broke HTTP/1.1 in a way that must not be forwarded or guessed at.

    `status` is what a server should answer (400, 413, 431, 501, 505); for a response that came from
    upstream it is 502. `detail` is fixed text for people and never holds bytes of the peer. The
    connection is not usable afterwards.
    """

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)
