"""The deployment's RSA key: made once, kept in a file, signing and verifying the planes' tokens.

Algorithm, issuer and audience are pinned here and nowhere negotiable. The claims are those of
`agentcube.ports.tokens`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)

from agentcube.errors import Invalid, Unauthenticated
from agentcube.model.ids import SandboxId, SessionId
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.tokens import (
    AUDIENCE_MANAGER,
    AUDIENCE_SHARE,
    ISSUER_MANAGER,
    ISSUER_ROUTER,
    TOKEN_LIFETIME,
    Link,
    Subject,
)
from agentcube.runtime.private_files import read_or_make

ALGORITHM = "RS256"
KEY_BITS = 2048  # the least that RFC 7518 §3.3 allows, and what the Go system uses
KEY_FILE = "signing.pem"
LEEWAY = timedelta(seconds=30)
"""How far two machines' clocks may differ. PicoD allows the same."""

_TOKEN_BYTES_MAX = 4096
_VERIFIED_MAX = 4096  # tokens remembered as verified; one RS256 verification is about 40 µs


def load_or_make_key(directory: Path) -> RSAPrivateKey:
    """The private key in `directory` (mode 0700), made at the first call (file mode 0600).

    Raises:
        Invalid: the file is damaged, of another kind or size, or its modes or owner are unsafe.
    """
    path = directory / KEY_FILE
    pem = read_or_make(path, _new_pem, what="signing key")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as exc:
        raise Invalid(
            f"the signing key at {path} is damaged; restore it from a backup, or remove the file to have "
            "a new one made (live sandboxes trust only the old key and will be lost)"
        ) from exc
    if not isinstance(key, RSAPrivateKey) or key.key_size < KEY_BITS:
        raise Invalid(f"the signing key at {path} is not an RSA key of at least {KEY_BITS} bits")
    return key


def _new_pem() -> bytes:
    key = generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: RSAPublicKey) -> str:
    """The key as a PEM block of type PUBLIC KEY."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode("ascii")


def key_id(key: RSAPublicKey) -> str:
    """The key's `kid`: its RFC 7638 thumbprint (SHA-256, base64url without padding)."""
    numbers = key.public_numbers()
    members = {"e": _base64url_int(numbers.e), "kty": "RSA", "n": _base64url_int(numbers.n)}
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode("ascii")
    return _base64url(hashlib.sha256(canonical).digest())


def _base64url_int(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


class RsaSigner:
    """Signs with one private key. Each token costs about a millisecond of CPU; callers cache."""

    def __init__(self, key: RSAPrivateKey, *, clock: Clock | None = None) -> None:
        self._key = key
        self._clock = clock or SystemClock()
        self._headers = {"kid": key_id(key.public_key())}
        self._public_keys = (public_pem(key.public_key()),)

    @property
    def public_keys(self) -> tuple[str, ...]:
        return self._public_keys

    def for_sandbox(self, session: SessionId, sandbox: SandboxId, subject: Subject) -> str:
        return self._sign(
            iss=ISSUER_ROUTER,
            aud=session,
            session_id=session,
            sandbox_id=sandbox,
            user_sub=subject.name,
        )

    def for_binding(self, session: SessionId, sandbox: SandboxId) -> str:
        return self._sign(iss=ISSUER_MANAGER, aud=sandbox, session_id=session, sandbox_id=sandbox)

    def for_manager(self, subject: Subject) -> str:
        return self._sign(iss=ISSUER_ROUTER, aud=AUDIENCE_MANAGER, sub=subject.name, admin=subject.admin)

    def for_link(self, session: SessionId, port: int, key: str, expires_at: datetime) -> str:
        return self._sign(
            expires_at, iss=ISSUER_MANAGER, aud=AUDIENCE_SHARE, session_id=session, port=port, key=key
        )

    def _sign(self, expires_at: datetime | None = None, **claims: str | bool | int) -> str:
        issued = math.floor(self._clock.now().timestamp())
        expires = issued + math.floor(TOKEN_LIFETIME.total_seconds())
        if expires_at is not None:
            expires = math.floor(expires_at.timestamp())
        return jwt.encode({**claims, "iat": issued, "exp": expires}, self._key, ALGORITHM, self._headers)


class RsaVerifier:
    """Verifies manager tokens (remembered until they expire) and share links by `kid` among PEM public keys."""

    def __init__(self, public_keys: Iterable[str], *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._keys: dict[str, RSAPublicKey] = {}
        for pem in public_keys:
            key = serialization.load_pem_public_key(pem.encode("ascii"))
            if not isinstance(key, RSAPublicKey):
                raise Invalid("a public key for verifying tokens is not an RSA key")
            self._keys[key_id(key)] = key
        self._verified: OrderedDict[str, tuple[Subject, float]] = OrderedDict()

    def manager_caller(self, token: str) -> Subject:
        now = self._clock.now().timestamp()
        known = self._verified.get(token)
        if known is not None and now < known[1]:
            return known[0]
        self._verified.pop(token, None)
        claims = self._claims(token, audience=AUDIENCE_MANAGER, issuer=ISSUER_ROUTER)
        until = _number(claims, "exp") + LEEWAY.total_seconds()
        if now >= until:
            raise Unauthenticated("the token has expired")
        if _number(claims, "iat") > now + LEEWAY.total_seconds():
            raise Unauthenticated("the token is from the future; check the clocks")
        name, admin = claims.get("sub"), claims.get("admin", False)
        if not isinstance(name, str) or not name or not isinstance(admin, bool):
            raise Unauthenticated("the token does not say who is calling")
        subject = Subject(name, admin)
        self._verified[token] = (subject, until)
        if len(self._verified) > _VERIFIED_MAX:
            self._verified.popitem(last=False)
        return subject

    def link(self, token: str) -> Link:
        claims = self._claims(token, audience=AUDIENCE_SHARE, issuer=ISSUER_MANAGER)
        session, key, port = claims.get("session_id"), claims.get("key"), claims.get("port")
        if not isinstance(session, str) or not isinstance(key, str) or type(port) is not int:
            raise Unauthenticated("the token is no share link's")
        return Link(SessionId(session), port, key, _number(claims, "exp"))

    def _claims(self, token: str, *, audience: str, issuer: str) -> dict[str, Any]:
        if len(token) > _TOKEN_BYTES_MAX:
            raise Unauthenticated("the token is too long")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise Unauthenticated("the token is signed by a key that is not trusted here")
            # Times are checked by the caller, against our own clock port.
            return jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=issuer,
                options={
                    "require": ["exp", "iat", "iss", "aud"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except jwt.PyJWTError as exc:
            raise Unauthenticated("the token does not verify") from exc


def _number(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated(f"the token's {name} is not a time")
    return float(value)
