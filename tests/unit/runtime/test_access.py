import stat

import pytest

from agentcube.errors import Invalid, Unauthenticated
from agentcube.ports.tokens import LOCAL, Subject
from agentcube.runtime.access import ApiKeyAuthenticator, OpenAuthenticator, load_or_make_api_key


def test_the_api_key_is_made_once_and_for_its_owner_only(tmp_path) -> None:
    tmp_path.chmod(0o700)
    key = load_or_make_api_key(tmp_path / "api-key")
    assert load_or_make_api_key(tmp_path / "api-key") == key
    assert key.startswith("ac_")
    assert len(key) > 40
    assert stat.S_IMODE((tmp_path / "api-key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"two words in a file of some length"])
def test_a_damaged_key_file_is_an_error(tmp_path, content) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "api-key").write_bytes(content)
    (tmp_path / "api-key").chmod(0o600)
    with pytest.raises(Invalid, match="damaged"):
        load_or_make_api_key(tmp_path / "api-key")


def test_a_key_tells_whose_it_is() -> None:
    auth = ApiKeyAuthenticator({"k1": LOCAL, "k2": Subject("root", admin=True)})
    assert auth.authenticate(b"Bearer k1") == LOCAL
    assert auth.authenticate(b"bearer  k2 ") == Subject("root", admin=True)


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"k1",
        b"Bearer",
        b"Bearer ",
        b"Basic k1",
        b"Bearer k",
        b"Bearer k11",
        b"Bearer \xff",
        b"B k1",
    ],
)
def test_anything_else_is_refused(header) -> None:
    with pytest.raises(Unauthenticated):
        ApiKeyAuthenticator({"k1": LOCAL}).authenticate(header)
    with pytest.raises(Unauthenticated):
        ApiKeyAuthenticator({}).authenticate(header)


@pytest.mark.parametrize("header", [None, b"", b"Bearer whatever"])
def test_an_open_server_takes_everybody_for_the_same(header) -> None:
    assert OpenAuthenticator().authenticate(header) == LOCAL
