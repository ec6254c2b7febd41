"""RS256 tokens (RFC 7519, RFC 8017), verify-only, with nothing but the standard library.

Verifying needs no secret and no constant time: one modular power and a comparison of the *whole*
padded block. Nothing of the signature is parsed, which is what the known forgeries need
(Bleichenbacher 2006 and its heirs). Everything that can be spelled in two ways is refused in all but one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEEWAY_S = 5
TOKEN_BYTES_MAX = 8192
MODULUS_BITS_MIN = 2048
MODULUS_BITS_MAX = 8192
KEYS_MAX = 16
CACHE_MAX = 1024  # verified tokens; a session has one per caller, renewed every few minutes

_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END \1-----")
_RSA_OID = bytes.fromhex("06092a864886f70d010101")
_DER_NULL = b"\x05\x00"
_DIGEST_INFO_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017 §9.2 note 1
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class TokenRefused(Exception):
    """The token does not prove what it should. The text is fit for the caller and holds nothing of it."""


class WrongAudience(TokenRefused):
    """Valid, but meant for another."""


@dataclass(frozen=True)
class PublicKey:
    """An RSA public key of a size that is safe."""

    modulus: int
    exponent: int

    @property
    def size_bytes(self) -> int:
        """Length of a signature."""
        return (self.modulus.bit_length() + 7) // 8

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's RSASSA-PKCS1-v1_5 signature of `message` with SHA-256."""
        size = self.size_bytes
        number = int.from_bytes(signature, "big")
        if len(signature) != size or number >= self.modulus:
            return False
        tail = _DIGEST_INFO_SHA256 + hashlib.sha256(message).digest()
        expected = b"\x00\x01" + b"\xff" * (size - len(tail) - 3) + b"\x00" + tail
        return pow(number, self.exponent, self.modulus).to_bytes(size, "big") == expected


def parse_public_keys(text: str) -> list[PublicKey]:
    """The keys in one or more PEM blocks: SubjectPublicKeyInfo or PKCS#1.

    Raises:
        ValueError: no block, another kind of key, malformed DER, or an unsafe size; says which block.
    """
    keys = []
    for number, match in enumerate(_PEM.finditer(text), 1):
        kind, body = match.groups()
        try:
            if kind not in ("PUBLIC KEY", "RSA PUBLIC KEY"):
                raise ValueError(f"it is a {kind}, not a public key")
            der = base64.b64decode("".join(body.split()), validate=True)
            keys.append(_rsa_key(_unwrap(der) if kind == "PUBLIC KEY" else der))
        except ValueError as exc:
            raise ValueError(f"public key {number}: {exc}") from None
    if not keys or len(keys) > KEYS_MAX:
        raise ValueError(f"there must be 1 to {KEYS_MAX} PEM blocks of RSA public keys")
    return keys


def _element(der: bytes, tag: int) -> tuple[bytes, bytes]:
    """Content of the first element, which must have `tag`, and what follows. Strict DER lengths."""
    if len(der) < 2 or der[0] != tag:
        raise ValueError("malformed DER")
    length, start = der[1], 2
    if length & 0x80:
        count = length & 0x7F
        start = 2 + count
        length = int.from_bytes(der[2:start], "big")
        if not 1 <= count <= 4 or len(der) < start or length < 0x80 or length >> (8 * (count - 1)) == 0:
            raise ValueError("malformed DER")
    if len(der) < start + length:
        raise ValueError("malformed DER")
    return der[start : start + length], der[start + length :]


def _unwrap(der: bytes) -> bytes:
    """The key inside a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7, RFC 3279 §2.3.1)."""
    info, rest = _element(der, 0x30)
    algorithm, bits = _element(info, 0x30)
    key, more = _element(bits, 0x03)
    if algorithm != _RSA_OID + _DER_NULL:
        raise ValueError("it is no RSA key")
    if rest or more or key[:1] != b"\x00":
        raise ValueError("malformed DER")
    return key[1:]


def _rsa_key(der: bytes) -> PublicKey:
    body, rest = _element(der, 0x30)
    modulus_der, body = _element(body, 0x02)
    exponent_der, more = _element(body, 0x02)
    if rest or more:
        raise ValueError("malformed DER")
    modulus, exponent = _positive(modulus_der), _positive(exponent_der)
    if not MODULUS_BITS_MIN <= modulus.bit_length() <= MODULUS_BITS_MAX or modulus % 2 == 0:
        raise ValueError(f"the modulus must be odd and have {MODULUS_BITS_MIN} to {MODULUS_BITS_MAX} bits")
    if exponent < 65537 or exponent % 2 == 0 or exponent.bit_length() > 32:
        raise ValueError("the exponent must be odd, at least 65537 and have at most 32 bits")
    return PublicKey(modulus, exponent)


def _positive(content: bytes) -> int:
    minimal = content[:1] != b"\x00" or (len(content) > 1 and content[1] & 0x80)
    if not content or content[0] & 0x80 or not minimal:
        raise ValueError("malformed DER")
    return int.from_bytes(content, "big")


def _from_base64url(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise TokenRefused("the token is malformed") from None
    # Unused low bits must be zero: each token has one spelling.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text.encode("ascii"):
        raise TokenRefused("the token is malformed")
    return data


def _json_object(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise TokenRefused("the token is malformed") from None
    if not isinstance(value, dict):
        raise TokenRefused("the token is malformed")
    return value


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**53:
        raise TokenRefused(f"the token's {name} is malformed")
    return float(value)


class Verifier:
    """Verifies tokens against a few keys and remembers what it verified until that expires.

    A token's `kid` may name any key: with so few, all are tried, which makes rotation need no names.
    """

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = tuple(keys)
        self._verified: dict[str, dict[str, Any]] = {}

    def verify(self, token: str, *, issuer: str, audience: str, now: float | None = None) -> dict[str, Any]:
        """The claims of a token that is ours, from `issuer`, for `audience`, and valid `now` (epoch seconds).

        Raises:
            TokenRefused: it is not; WrongAudience when all but the audience is right.
        """
        claims = self._verified.get(token)
        if claims is None:
            claims = self._signed_claims(token)
        _check(claims, issuer, audience, time.time() if now is None else now)
        self._remember(token, claims)
        return claims

    def _signed_claims(self, token: str) -> dict[str, Any]:
        match = _TOKEN.fullmatch(token) if len(token) <= TOKEN_BYTES_MAX else None
        if match is None:
            raise TokenRefused("the token is malformed")
        header = _json_object(_from_base64url(match[1]))
        if header.get("alg") != "RS256" or "crit" in header:
            raise TokenRefused("the token is not signed with RS256")
        if "kid" in header and not isinstance(header["kid"], str):
            raise TokenRefused("the token is malformed")
        message = f"{match[1]}.{match[2]}".encode("ascii")
        signature = _from_base64url(match[3])
        if not any(key.verifies(message, signature) for key in self._keys):
            raise TokenRefused("the token's signature is not of a trusted key")
        return _json_object(_from_base64url(match[2]))

    def _remember(self, token: str, claims: dict[str, Any]) -> None:
        if token not in self._verified and len(self._verified) >= CACHE_MAX:
            del self._verified[next(iter(self._verified))]  # the oldest
        self._verified[token] = claims


def _check(claims: dict[str, Any], issuer: str, audience: str, now: float) -> None:
    expires, begins = _seconds(claims, "exp"), _seconds(claims, "nbf")
    if expires is None:
        raise TokenRefused("the token has no exp")
    if now >= expires + LEEWAY_S:
        raise TokenRefused("the token has expired")
    if begins is not None and now < begins - LEEWAY_S:
        raise TokenRefused("the token is not valid yet")
    if claims.get("iss") != issuer:
        raise TokenRefused("the token is of another issuer")
    audiences = claims.get("aud")
    if audiences != audience and not (isinstance(audiences, list) and audience in audiences):
        raise WrongAudience("the token is for another audience")
