"""Who a client is, from its Authorization header: local API keys, or nobody asked.

Pure CPU. Key files are made here; where they live is the composition's business.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

from agentcube.errors import Invalid, Unauthenticated
from agentcube.ports.tokens import LOCAL, Subject
from agentcube.runtime.private_files import read_or_make

_KEY_PREFIX = "ac_"  # lets secret scanners and people recognise one
_KEY_BYTES = 32
_KEY_CHARS_MIN = 20
_HEADER_BYTES_MAX = 4096


def load_or_make_api_key(path: Path) -> str:
    """The API key in the file `path` (mode 0600), made at the first call. Raises as `read_or_make`."""
    content = read_or_make(path, _new_key, what="API key")
    try:
        key = content.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if len(key) < _KEY_CHARS_MIN or not key.isprintable() or " " in key:
        raise Invalid(f"the API key at {path} is damaged; remove the file to have a new one made")
    return key


def _new_key() -> bytes:
    return (_KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES) + "\n").encode("ascii")


class ApiKeyAuthenticator:
    """Knows API keys by their SHA-256 and tells whose they are.

    Every known key is compared, in constant time, whatever the outcome.
    """

    def __init__(self, keys: Mapping[str, Subject]) -> None:
        self._subjects = [(_digest(key.encode()), subject) for key, subject in keys.items()]

    def authenticate(self, authorization: bytes | None) -> Subject:
        if authorization is None:
            raise Unauthenticated("this server wants an API key: send 'Authorization: Bearer <key>'")
        scheme, _, credentials = authorization.strip().partition(b" ")
        credentials = credentials.strip()
        if scheme.lower() != b"bearer" or not credentials or len(credentials) > _HEADER_BYTES_MAX:
            raise Unauthenticated("the Authorization header must be 'Bearer <API key>'")
        presented, found = _digest(credentials), None
        for digest, subject in self._subjects:
            if hmac.compare_digest(digest, presented):
                found = subject
        if found is None:
            raise Unauthenticated("the API key is not known here")
        return found


class OpenAuthenticator:
    """Takes everybody for `LOCAL` without looking (`--auth none`, loopback only)."""

    def authenticate(self, authorization: bytes | None) -> Subject:
        return LOCAL


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
