"""RS256: what a trusted key signed is accepted, and nothing that only looks like it.

The signature cases are the classes of Wycheproof's rsa_signature tests, made here with a key of our own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcube.picod.tokens import (
    CACHE_MAX,
    PublicKey,
    TokenRefused,
    Verifier,
    WrongAudience,
    parse_public_keys,
)

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=3072)
NOW = 1_800_000_000
CLAIMS: dict[str, Any] = {"iss": "i", "aud": "a", "exp": NOW + 60}
SIZE = 256
N = KEY.public_key().public_numbers().n
D = KEY.private_numbers().d
MESSAGE = b"123400"


def pem(key: rsa.RSAPrivateKey, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> str:
    return key.public_key().public_bytes(Encoding.PEM, form).decode()


def public(key: rsa.RSAPrivateKey = KEY) -> PublicKey:
    (found,) = parse_public_keys(pem(key))
    return found


def block(
    *,
    digest_info: bytes = bytes.fromhex("3031300d060960864801650304020105000420"),
    digest: bytes | None = None,
    start: bytes = b"\x00\x01",
    fill: bytes = b"\xff",
    zero: bytes = b"\x00",
    after: bytes = b"",
    short: bool = False,
) -> int:
    """An encoded message as PKCS#1 v1.5 has it, with one thing different."""
    tail = digest_info + (hashlib.sha256(MESSAGE).digest() if digest is None else digest) + after
    room = 8 if short else SIZE - len(tail) - len(start) - len(zero)
    data = start + fill * room + zero + tail
    return int.from_bytes(data.ljust(SIZE, b"\x00") if short else data, "big")


def sign(number: int) -> bytes:
    return pow(number, D, N).to_bytes(SIZE, "big")


def test_a_proper_signature_verifies() -> None:
    assert public().verifies(MESSAGE, KEY.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256()))
    assert public().verifies(MESSAGE, sign(block()))
    assert public(OTHER).verifies(b"", OTHER.sign(b"", padding.PKCS1v15(), hashes.SHA256()))


BAD_BLOCKS: dict[str, Callable[[], int]] = {
    "missing NULL": lambda: block(digest_info=bytes.fromhex("302f300b0609608648016503040201" + "0420")),
    "long form length": lambda: block(digest_info=bytes.fromhex("308131300d060960864801650304020105000420")),
    "long form of an inner length": lambda: block(
        digest_info=bytes.fromhex("303230810d060960864801650304020105000420")
    ),
    "indefinite length": lambda: block(
        digest_info=bytes.fromhex("3080300d060960864801650304020105000420"), after=b"\x00\x00"
    ),
    "parameters other than NULL": lambda: block(
        digest_info=bytes.fromhex("3033300f0609608648016503040201040200000420")
    ),
    "garbage after the digest": lambda: block(after=b"\x01\x02\x03"),
    "garbage after a short padding": lambda: block(short=True),
    "sha1": lambda: block(
        digest_info=bytes.fromhex("3021300906052b0e03021a05000414"), digest=hashlib.sha1(MESSAGE).digest()
    ),
    "sha512": lambda: block(
        digest_info=bytes.fromhex("3051300d060960864801650304020305000440"),
        digest=hashlib.sha512(MESSAGE).digest(),
    ),
    "sha256 with sha1's oid": lambda: block(digest_info=bytes.fromhex("302d300906052b0e03021a05000420")),
    "digest of another message": lambda: block(digest=hashlib.sha256(b"x").digest()),
    "no digest info": lambda: block(digest_info=b""),
    "digest cut short": lambda: block(digest=hashlib.sha256(MESSAGE).digest()[:-1]),
    "block type 0": lambda: block(start=b"\x00\x00"),
    "block type 2": lambda: block(start=b"\x00\x02"),
    "first byte not zero": lambda: block(start=b"\x01\x01") % N,
    "padding of zeros": lambda: block(fill=b"\x00"),
    "padding of other bytes": lambda: block(fill=b"\xfe"),
    "no zero behind the padding": lambda: block(zero=b"\xff"),
    "two zeros behind the padding": lambda: block(zero=b"\x00\x00"),
    "zero": lambda: 0,
    "one": lambda: 1,
    "n - 1": lambda: N - 1,
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_no_other_block_verifies(name: str) -> None:
    assert not public().verifies(MESSAGE, sign(BAD_BLOCKS[name]()))


def test_the_signature_has_exactly_the_modulus_length_and_is_below_it() -> None:
    good = sign(block())
    number = int.from_bytes(good, "big")

    assert not public().verifies(MESSAGE, b"\x00" + good)
    assert not public().verifies(MESSAGE, good + b"\x00")
    assert not public().verifies(MESSAGE, good[:-1])
    assert not public().verifies(MESSAGE, b"")
    assert not public().verifies(MESSAGE, (number + N).to_bytes(SIZE + 1, "big"))
    if number + N < 1 << (8 * SIZE):
        assert not public().verifies(MESSAGE, (number + N).to_bytes(SIZE, "big"))
    for wrong in (0, 1, N, N - 1, N + 1, (1 << (8 * SIZE)) - 1):
        assert not public().verifies(MESSAGE, wrong.to_bytes(SIZE, "big"))


def test_other_schemes_of_the_same_key_do_not_verify() -> None:
    pss = KEY.sign(MESSAGE, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    sha512 = KEY.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA512())

    assert not public().verifies(MESSAGE, pss)
    assert not public().verifies(MESSAGE, sha512)


@settings(max_examples=50)
@given(st.integers(min_value=0, max_value=SIZE * 8 - 1))
def test_no_flipped_bit_verifies(bit: int) -> None:
    number = int.from_bytes(sign(block()), "big") ^ (1 << bit)
    assert not public().verifies(MESSAGE, number.to_bytes(SIZE, "big"))


# Keys


@pytest.mark.parametrize("form", [PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1])
def test_both_forms_of_pem_and_several_blocks_are_read(form: PublicFormat) -> None:
    keys = parse_public_keys("some text\n" + pem(KEY, form) + "\n" + pem(OTHER, form))

    assert [key.modulus for key in keys] == [N, OTHER.public_key().public_numbers().n]
    assert keys[0].exponent == 65537


def test_openssl_makes_keys_we_read() -> None:
    made = subprocess.run(["openssl", "genrsa", "2048"], capture_output=True, check=True).stdout
    text = subprocess.run(["openssl", "rsa", "-pubout"], input=made, capture_output=True, check=True).stdout
    assert parse_public_keys(text.decode())[0].modulus.bit_length() == 2048


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    length = bytes([size]) if size < 128 else bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + length + content


def integer(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def pkcs1(data: bytes) -> str:
    return (
        f"-----BEGIN RSA PUBLIC KEY-----\n{base64.b64encode(data).decode()}\n-----END RSA PUBLIC KEY-----\n"
    )


EC = ec.generate_private_key(ec.SECP256R1()).public_key()
BODY = integer(N) + integer(65537)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "PEM"),
        ("not a key", "PEM"),
        (EC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), "no RSA key"),
        (pem(KEY).replace("PUBLIC KEY", "PRIVATE KEY"), "not a public key"),
        (pem(KEY).replace("PUBLIC KEY", "CERTIFICATE"), "not a public key"),
        (pkcs1(der(0x30, BODY) + b"\x00"), "malformed"),
        (pkcs1(der(0x30, BODY + b"\x00")), "malformed"),
        (pkcs1(der(0x30, BODY)[:-1]), "malformed"),
        (pkcs1(der(0x31, BODY)), "malformed"),
        (pkcs1(b"\x30\x80" + BODY + b"\x00\x00"), "malformed"),  # BER
        (pkcs1(b"\x30\x83\x00" + len(BODY).to_bytes(2, "big") + BODY), "malformed"),  # BER
        (pkcs1(der(0x30, der(2, b"\x00\x00" + N.to_bytes(256, "big")) + integer(65537))), "malformed"),
        (pkcs1(der(0x30, der(2, N.to_bytes(256, "big")) + integer(65537))), "malformed"),  # negative
        (pkcs1(der(0x30, der(2, b"") + integer(65537))), "malformed"),
        (pkcs1(der(0x30, integer(N) + integer(3))), "exponent"),
        (pkcs1(der(0x30, integer(N) + integer(1))), "exponent"),
        (pkcs1(der(0x30, integer(N) + integer(65538))), "exponent"),
        (pkcs1(der(0x30, integer(N) + integer(2**40 + 1))), "exponent"),
        (pkcs1(der(0x30, integer(2**1024 + 1) + integer(65537))), "modulus"),
        (pkcs1(der(0x30, integer(2**2047) + integer(65537))), "modulus"),
        (pkcs1(der(0x30, integer(2**20000 + 1) + integer(65537))), "modulus"),
        (pkcs1(b""), "malformed"),
        (pem(KEY) * 17, "1 to 16"),
    ],
)
def test_keys_that_are_unsafe_or_malformed_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_public_keys(text)


def test_a_message_names_the_block_and_not_its_content() -> None:
    with pytest.raises(ValueError, match=r"^public key 2: ") as caught:
        parse_public_keys(pem(KEY) + pkcs1(b"\x30\x00"))
    assert str(N)[:20] not in str(caught.value)


# Tokens


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims: object = None, header: object = None, *, key: rsa.RSAPrivateKey = KEY) -> str:
    """A token with any header and claims (also raw bytes), properly signed."""
    parts = [{"alg": "RS256"} if header is None else header, CLAIMS if claims is None else claims]
    signed = ".".join(b64(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts)
    return f"{signed}.{b64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def verify(text: str, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"issuer": "i", "audience": "a", "now": NOW, **more}
    return Verifier([public(OTHER), public()]).verify(text, **asked)


def test_a_token_of_pyjwt_verifies_with_any_kid() -> None:
    made = jwt.encode({**CLAIMS, "x": "é"}, KEY, "RS256", {"kid": "whatever"})

    assert verify(made)["x"] == "é"
    assert verify(token({**CLAIMS, "aud": ["b", "a"]}))["iss"] == "i"
    assert verify(token(key=OTHER))["iss"] == "i"


def test_a_few_seconds_of_skew_are_forgiven() -> None:
    assert verify(token({**CLAIMS, "exp": NOW - 4.5}))
    assert verify(token({**CLAIMS, "nbf": NOW + 4.5}))


BAD_CLAIMS: list[tuple[object, str]] = [
    ({**CLAIMS, "exp": NOW - 5}, "expired"),
    ({k: v for k, v in CLAIMS.items() if k != "exp"}, "no exp"),
    ({**CLAIMS, "exp": None}, "exp"),
    ({**CLAIMS, "exp": str(NOW + 60)}, "exp"),
    ({**CLAIMS, "exp": True}, "exp"),
    (b'{"iss": "i", "aud": "a", "exp": NaN}', "exp"),
    (b'{"iss": "i", "aud": "a", "exp": 1e999}', "exp"),
    ({**CLAIMS, "nbf": NOW + 6}, "not valid yet"),
    ({**CLAIMS, "nbf": "x"}, "nbf"),
    ({**CLAIMS, "iss": "other"}, "issuer"),
    ({k: v for k, v in CLAIMS.items() if k != "iss"}, "issuer"),
    ({**CLAIMS, "iss": ["i"]}, "issuer"),
    ({**CLAIMS, "aud": "b"}, "audience"),
    ({**CLAIMS, "aud": ["b"]}, "audience"),
    ({**CLAIMS, "aud": {"a": 1}}, "audience"),
    ({k: v for k, v in CLAIMS.items() if k != "aud"}, "audience"),
    ([CLAIMS], "malformed"),
    (b"{", "malformed"),
    (b"\xff", "malformed"),
    (b'{"exp": 1, "exp": 9999999999, "iss": "i", "aud": "a"}', "malformed"),
    (b"[" * 5000, "malformed"),
]


@pytest.mark.parametrize(("claims", "why"), BAD_CLAIMS)
def test_claims_that_do_not_fit_are_refused(claims: object, why: str) -> None:
    with pytest.raises(TokenRefused, match=why):
        verify(token(claims))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "rs256"},
        {"alg": "RS512"},
        {"alg": ["RS256"]},
        {},
        {"alg": "RS256", "crit": ["exp"]},
        {"alg": "RS256", "kid": 1},
        b'{"alg": "RS256", "alg": "none"}',
        b"null",
    ],
)
def test_headers_other_than_rs256_are_refused(header: object) -> None:
    with pytest.raises(TokenRefused):
        verify(token(header=header))


def test_an_hs256_token_keyed_with_our_public_key_is_refused() -> None:
    import hmac

    signed = f"{b64(json.dumps({'alg': 'HS256'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    mac = hmac.new(pem(KEY).encode(), signed.encode(), "sha256").digest()
    with pytest.raises(TokenRefused):
        verify(f"{signed}.{b64(mac)}")


def spellings() -> list[str]:
    good = token()
    head, claims, signature = good.split(".")
    # The last character of a 256-byte signature carries unused bits: another spelling of the same bytes.
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    sibling = last[last.index(signature[-1]) | 1]
    return [
        "",
        ".",
        "..",
        good + ".",
        f"{head}.{claims}",
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature}=",
        f"{head}.{claims}.{signature}==",
        f"{head}.{claims}.{signature[:-1]}{sibling}",
        f" {good}",
        f"{good}\n",
        f"{head}.{claims}.{signature[:10]}\n{signature[10:]}",
        f"{head}.{claims}.{signature.replace('-', '+').replace('_', '/')}+",
        f"{head}.{claims}A.{signature}",
        good + "A" * 9000,
        f"{head}.{claims}.é{signature}",
        token(key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ]


@pytest.mark.parametrize("number", range(17))
def test_a_token_has_one_spelling(number: int) -> None:
    with pytest.raises(TokenRefused) as caught:
        verify(spellings()[number])
    assert "eyJ" not in str(caught.value)


def test_a_remembered_token_still_expires_and_is_still_for_one_audience() -> None:
    verifier = Verifier([public()])
    made = token()
    for _ in range(2):
        assert verifier.verify(made, issuer="i", audience="a", now=NOW)
    with pytest.raises(WrongAudience):
        verifier.verify(made, issuer="i", audience="b", now=NOW)
    with pytest.raises(TokenRefused, match="expired"):
        verifier.verify(made, issuer="i", audience="a", now=NOW + 66)


def test_the_memory_of_tokens_is_bounded_and_makes_repeats_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier([public()])
    verifier._verified.update({str(n): CLAIMS for n in range(CACHE_MAX)})
    made = token()
    verifier.verify(made, issuer="i", audience="a", now=NOW)
    assert len(verifier._verified) == CACHE_MAX

    begin = time.perf_counter()
    for _ in range(1000):
        verifier.verify(made, issuer="i", audience="a", now=NOW)
    assert time.perf_counter() - begin < 1  # 1000 public-key operations take longer than that margin hides


@given(st.text(max_size=200))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(TokenRefused):
        verify(text)
