"""The certificate that the Router serves, replaced while it serves."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import structlog

from agentcube.errors import Invalid

log = structlog.get_logger(__name__)

LOOK_S = 10.0
"""How often the files are looked at; whoever renews certificates does it weeks ahead."""


class Certificate:
    """A chain and its private key, in PEM files, and the `context` that connections are made with.

    TLS 1.2 or newer, HTTP/1.1 by ALPN. Loading new files into the context changes what later
    handshakes present; connections that stand are not touched.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        """Raises Invalid when the files cannot be read or do not belong together."""
        self._chain, self._key = chain, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp = self._look()
        try:
            self._load()
        except OSError as exc:  # ssl.SSLError is one
            raise Invalid(f"cannot use the certificate {chain} with the key {key}: {_reason(exc)}") from exc

    def renew(self) -> bool:
        """Load the files again if they have changed; whether that was done.

        Files that are no good (half written, say) leave what is there and are tried again next time.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return False
        try:
            self._load()
        except OSError as exc:
            log.warning("the changed certificate is not used", path=str(self._chain), reason=_reason(exc))
            return False
        self._stamp = stamp
        log.info("certificate renewed", path=str(self._chain))
        return True

    def _load(self) -> None:
        # First into a context of its own: one that fails half way would leave a chain without its key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._chain, self._key, password=_no_password)
        self.context.load_cert_chain(self._chain, self._key, password=_no_password)

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(path) for path in (self._chain, self._key))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # through links: Kubernetes changes where they lead
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _no_password() -> str:
    """A server has nobody to ask (OpenSSL would prompt at the terminal, and hang)."""
    raise OSError("the key is encrypted: give one without a passphrase")


def _reason(exc: OSError) -> str:
    return str(getattr(exc, "reason", None) or exc.strerror or exc).lower()
