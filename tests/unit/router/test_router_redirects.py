"""Redirects of sandboxes on the API's own origin lead nowhere but into what they serve, or away."""

from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.router.redirects import led_within

PREFIX = "/v1/sessions/s/ports/80"
HOST = "127.0.0.1:8080"


def led(location: str, *, path: str = "/a/b?c=/d/e", host: str = HOST) -> str:
    head = f"HTTP/1.1 307 Temporary Redirect\r\nX: y\r\nlocation: {location}\r\nZ: z\r\n".encode("latin-1")
    answer = led_within(head, PREFIX.encode(), path.encode(), (host.encode(), b"public.test")).decode(
        "latin-1"
    )
    first, x, *rest = answer.split("\r\n")
    assert (first, x, rest[-2:]) == ("HTTP/1.1 307 Temporary Redirect", "X: y", ["Z: z", ""])
    return rest[0].removeprefix("Location: ") if len(rest) == 3 else ""


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/login?next=/x#top", f"{PREFIX}/login?next=/x#top"),
        ("/", f"{PREFIX}/"),
        (f"{PREFIX}/ok", f"{PREFIX}/ok"),
        (PREFIX, PREFIX),
        (f"http://{HOST}{PREFIX}/ok", f"{PREFIX}/ok"),
        ("c", f"{PREFIX}/a/c"),
        ("./c/.", f"{PREFIX}/a/c/"),
        ("../c", f"{PREFIX}/c"),
        ("?x=1", "?x=1"),
        ("#x", "#x"),
        # The API.
        ("/v1/sessions/other/suspend", f"{PREFIX}/v1/sessions/other/suspend"),
        (f"http://{HOST}/v1/sessions", f"{PREFIX}/v1/sessions"),
        (f"//{HOST}/v1/sessions", f"{PREFIX}/v1/sessions"),
        ("https://127.0.0.1/v1/sessions", f"{PREFIX}/v1/sessions"),
        ("http://0x7f.1:8080/v1/sessions", f"{PREFIX}/v1/sessions"),
        ("http://2130706433:8080/v1/sessions", f"{PREFIX}/v1/sessions"),
        ("http://u@%3127.0.0.1:8080/v1/sessions", f"{PREFIX}/v1/sessions"),
        ("http://\xef\xbc\x91:8080/v1/sessions", f"{PREFIX}/v1/sessions"),
        (f"{PREFIX}/../81/x", f"{PREFIX}/v1/sessions/s/ports/81/x"),
        (f"{PREFIX}/%2e%2E/81/x", f"{PREFIX}/v1/sessions/s/ports/81/x"),
        (f"{PREFIX}1/x", f"{PREFIX}{PREFIX}1/x"),
        ("../../../../../../v1/sessions", f"{PREFIX}/v1/sessions"),
        ("..\\..\\..\\..\\..\\x", f"{PREFIX}/v1/x"),
        ("\\v1\\sessions", f"{PREFIX}/v1/sessions"),
        ("https://public.test/v1/sessions", f"{PREFIX}/v1/sessions"),
        # Clients disagree about what the host is here, and some fill in their own.
        (f"http://evil.test\\@{HOST}/v1/sessions", f"http://evil.test/@{HOST}/v1/sessions"),
        (f"ht\ttp://evil.test\t/@{HOST}/x", f"http://evil.test/@{HOST}/x"),
        ("http://:8080/v1/sessions", ""),
        ("http://@:8080/v1/sessions", ""),
        ("//@/v1/sessions", ""),
        ("http:/v1/sessions", ""),
        ("http:v1", ""),
        ("http://[::1/x", ""),
        # Elsewhere, where credentials do not go along.
        ("https://example.com/x?y", "https://example.com/x?y"),
        ("//example.com/x", "//example.com/x"),
        ("mailto:a@b", "mailto:a@b"),
    ],
)
def test_a_redirect_leads_within_or_away(location: str, place: str) -> None:
    assert led(location) == place


def test_hosts_are_compared_and_not_their_spelling() -> None:
    for host, location in (
        ("cube.test", "http://CUBE.test./v1"),
        ("cube.test:8080", "//cube.test/v1"),
        ("[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080/v1"),
    ):
        assert led(location, host=host) == f"{PREFIX}/v1"


@given(st.text(alphabet="/.\\%2eE:?#ab@[]v1", max_size=25), st.sampled_from(["/", "/a/b", "/a/../b?x=/y"]))
def test_no_text_leads_to_the_api(location: str, path: str) -> None:
    at = f"http://{HOST}{PREFIX}{path}"
    place = led(location, path=path)
    for read in (str, unquote):
        to = urlsplit(urljoin(at, read(place.replace("\\", "/"))))
        if to.hostname == "127.0.0.1":
            assert to.path == PREFIX or to.path.startswith(f"{PREFIX}/"), place
