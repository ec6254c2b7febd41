import base64
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from agentcube.errors import Invalid, Unauthenticated
from agentcube.model.ids import SandboxId, SessionId
from agentcube.ports.tokens import LOCAL, Link, Subject
from agentcube.runtime.keys import KEY_FILE, RsaSigner, RsaVerifier, key_id, load_or_make_key, public_pem
from agentcube.testing.clock import FakeClock


@pytest.fixture(scope="module")
def key():
    return generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def signer(key, clock) -> RsaSigner:
    return RsaSigner(key, clock=clock)


@pytest.fixture
def verifier(signer, clock) -> RsaVerifier:
    return RsaVerifier(signer.public_keys, clock=clock)


def forge(key, claims, *, algorithm="RS256", kid=None) -> str:
    headers = {"kid": kid if kid is not None else key_id(key.public_key())}
    return jwt.encode(claims, key, algorithm, headers)


def good(clock, **other) -> dict:
    now = int(clock.now().timestamp())
    claims = {"iss": "agentcube-router", "aud": "agentcube-manager", "sub": "ada", "admin": False}
    return {**claims, "iat": now, "exp": now + 300, **other}


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path) -> None:
    directory = tmp_path / "data" / "keys"
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: load_or_make_key(directory), range(4)))
    assert len({key_id(k.public_key()) for k in keys}) == 1
    assert [f.name for f in directory.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((directory / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert keys[0].key_size == 2048


def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path) -> None:
    load_or_make_key(tmp_path / "keys")
    (tmp_path / "keys" / KEY_FILE).chmod(0o644)
    with pytest.raises(Invalid, match="chmod 600"):
        load_or_make_key(tmp_path / "keys")


def test_an_open_directory_is_refused_with_the_remedy(tmp_path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o755)
    with pytest.raises(Invalid, match="chmod 700"):
        load_or_make_key(tmp_path / "keys")


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----"]
)
def test_a_damaged_key_is_an_error_and_not_replaced(tmp_path, content) -> None:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    path = directory / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Invalid, match="damaged"):
        load_or_make_key(directory)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path) -> None:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / KEY_FILE).write_bytes(pem)
    (directory / KEY_FILE).chmod(0o600)
    with pytest.raises(Invalid, match="not an RSA key"):
        load_or_make_key(directory)


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: p.mkdir(), lambda p: p.symlink_to("/etc/passwd")])
def test_what_is_no_plain_file_is_refused(tmp_path, make) -> None:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    make(directory / KEY_FILE)
    with pytest.raises(Invalid, match=KEY_FILE):
        load_or_make_key(directory)


def test_a_place_where_no_directory_can_be_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="signing key"):
        load_or_make_key(tmp_path / "file" / "keys")


def test_tokens_carry_the_claims_of_the_contract(signer, clock) -> None:
    session, sandbox = SessionId("s1"), SandboxId("sb-1")
    now = int(clock.now().timestamp())
    times = {"iat": now, "exp": now + 300}
    [pem] = signer.public_keys
    wanted = {
        signer.for_sandbox(session, sandbox, LOCAL): {
            "iss": "agentcube-router",
            "aud": "s1",
            "session_id": "s1",
            "sandbox_id": "sb-1",
            "user_sub": "local",
        },
        signer.for_binding(session, sandbox): {
            "iss": "agentcube-manager",
            "aud": "sb-1",
            "session_id": "s1",
            "sandbox_id": "sb-1",
        },
        signer.for_manager(Subject("ada", admin=True)): {
            "iss": "agentcube-router",
            "aud": "agentcube-manager",
            "sub": "ada",
            "admin": True,
        },
    }
    for token, claims in wanted.items():
        header = jwt.get_unverified_header(token)
        public = serialization.load_pem_public_key(pem.encode())
        assert (header["alg"], header["kid"]) == ("RS256", key_id(public))
        options = {"verify_exp": False, "verify_aud": False, "verify_iat": False}
        assert jwt.decode(token, pem, algorithms=["RS256"], options=options) == {**claims, **times}


def test_the_key_id_is_the_rfc_7638_thumbprint() -> None:
    # The key and thumbprint of RFC 7638 §3.1.
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRX"
        "jBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqz"
        "s8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-"
        "G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    number = int.from_bytes(base64.urlsafe_b64decode(n + "=="), "big")
    assert (
        key_id(RSAPublicNumbers(65537, number).public_key()) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    )


def test_a_callers_token_is_verified_and_remembered_until_it_expires(signer, verifier, clock) -> None:
    token = signer.for_manager(Subject("ada", admin=True))
    for _ in range(2):
        assert verifier.manager_caller(token) == Subject("ada", admin=True)
    clock.advance(timedelta(minutes=5, seconds=29))
    assert verifier.manager_caller(token).name == "ada"  # within the leeway
    clock.advance(timedelta(seconds=1))
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.manager_caller(token)


@pytest.mark.parametrize(
    "other",
    [
        {"iss": "agentcube-manager"},
        {"aud": "s1"},
        {"aud": ["x"]},
        {"sub": ""},
        {"sub": None},
        {"sub": 7},
        {"admin": "yes"},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"iat": None},
        {"iat": 4102444800},
        {"iss": None},
    ],
)
def test_a_token_that_says_something_else_is_refused(key, verifier, clock, other) -> None:
    claims = {k: v for k, v in good(clock, **other).items() if v is not None}
    assert verifier.manager_caller(forge(key, good(clock))) == Subject("ada")
    with pytest.raises(Unauthenticated):
        verifier.manager_caller(forge(key, claims))


def test_a_share_link_is_verified_and_is_good_for_nothing_else(signer, verifier, clock) -> None:
    expires = clock.now() + timedelta(hours=1)
    token = signer.for_link(SessionId("s1"), 3000, "key", expires)
    assert verifier.link(token) == Link(SessionId("s1"), 3000, "key", expires.timestamp())
    with pytest.raises(Unauthenticated):
        verifier.manager_caller(token)
    for other in (
        signer.for_manager(Subject("ada")),
        signer.for_sandbox(SessionId("agentcube-share"), SandboxId("sb-1"), Subject("ada")),
        signer.for_binding(SessionId("s1"), SandboxId("agentcube-share")),
    ):
        with pytest.raises(Unauthenticated):
            verifier.link(other)


@pytest.mark.parametrize(
    "other", [{"port": "80"}, {"port": True}, {"port": 80.0}, {"key": 1}, {"session_id": None}]
)
def test_a_share_link_that_says_something_else_is_refused(key, verifier, clock, other) -> None:
    said = {"iss": "agentcube-manager", "aud": "agentcube-share", "session_id": "s1", "port": 80, "key": "k"}
    assert verifier.link(forge(key, good(clock, **said))).port == 80
    with pytest.raises(Unauthenticated):
        verifier.link(forge(key, good(clock, **{**said, **other})))


def test_a_token_of_another_algorithm_or_key_is_refused(key, verifier, clock) -> None:
    claims, kid = good(clock), key_id(key.public_key())
    other = generate_private_key(public_exponent=65537, key_size=2048)
    # PyJWT refuses to make this one itself: the public key as an HMAC secret.
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": kid}).encode()).rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    import hashlib
    import hmac

    mac = hmac.new(public_pem(key.public_key()).encode(), head + b"." + body, hashlib.sha256).digest()
    confused = b".".join([head, body, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()
    none = jwt.encode(claims, None, "none", {"kid": kid})
    for token in (
        confused,
        none,
        forge(other, claims),
        forge(other, claims, kid=kid),
        forge(key, claims, kid=""),
    ):
        with pytest.raises(Unauthenticated):
            verifier.manager_caller(token)
    with pytest.raises(Unauthenticated):
        verifier.manager_caller(forge(key, claims, algorithm="PS256"))


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "\x00", "é", "." * 10, "x" * 100_000])
def test_garbage_is_refused(verifier, token) -> None:
    with pytest.raises(Unauthenticated):
        verifier.manager_caller(token)


def test_what_is_remembered_is_bounded(signer, verifier, monkeypatch) -> None:
    monkeypatch.setattr("agentcube.runtime.keys._VERIFIED_MAX", 3)
    for n in range(10):
        verifier.manager_caller(signer.for_manager(Subject(f"u{n}")))
    assert len(verifier._verified) == 3
