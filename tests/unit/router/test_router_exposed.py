"""Hosts, links and lines of exposed ports, as functions."""

from urllib.parse import urljoin

from hypothesis import given
from hypothesis import strategies as st

from agentcube.router.exposed import Hosts, Place, answer_head, request_lines, token_in, without_token

TARGETS = st.text(alphabet="/\\.ab?&=#%", max_size=30).map(lambda t: "/" + t)
LINES = st.lists(
    st.tuples(
        st.sampled_from(
            ["Cookie", "Set-Cookie", "set-cookie", "X-App", "Clear-Site-Data", "Content-Security-Policy"]
        ),
        st.text(alphabet='ab=;, /"', max_size=20).map(lambda v: v.strip(" ")),
    ),
    max_size=6,
)


@given(TARGETS)
def test_an_exchange_leads_to_the_host_that_it_was_asked_on(target: str) -> None:
    target = f"{target}&agentcube-share=token&x=1"
    left = without_token(target.encode()).decode()
    assert "token" not in left.partition("?")[2]
    for base in ("http://a.test/", "https://a.test/deep/er?x"):
        assert urljoin(base, left.replace("\\", "/")).startswith(base[: base.index("/", 8) + 1])


def test_a_token_is_the_first_of_its_parameter() -> None:
    assert token_in(b"/a?agentcube-share=x&agentcube-share=y") == b"x"
    assert token_in(b"/a?b=agentcube-share=x") is None
    assert token_in(b"/agentcube-share=x") is None
    assert without_token(b"/a?agentcube-share=x&b&agentcube-share=y") == b"/a?b"


def test_hosts_name_ports() -> None:
    hosts = Hosts("apps.test")
    for below in (b"x.80-abc.apps.test", b"a.b.80-abc.apps.test:8080"):  # some clients take credentials there
        assert hosts.place(below) == "this host names no port of a session"
    assert hosts.place(b"80-abc.apps.test:8080") == Place("abc", 80)  # type: ignore[arg-type]
    assert hosts.place(b"80-abc.appsxtest") == ""
    assert hosts.place(b"") == ""
    assert isinstance(hosts.place(b"80-a_b.apps.test"), str)
    assert Hosts("").place(b"80-abc.localhost") == ""


@given(LINES, st.sampled_from([b"", b"/v1/sessions/s/ports/80"]))
def test_whatever_is_said_the_lines_stay_lines_and_nothing_of_ours_or_of_others_passes(
    lines: list[tuple[str, str]], prefix: bytes
) -> None:
    said = "".join(f"{name}: {value}\r\n" for name, value in lines).encode()
    ours = (
        said + b"Cookie: agentcube-share=t; a=1;__Host-agentcube-share=u\r\nSet-Cookie: agentcube-share=v\r\n"
    )
    asked = request_lines(ours, prefix)
    assert asked.endswith(b"\r\n") or not asked
    assert b"agentcube-share=t" not in asked
    assert b"agentcube-share=u" not in asked
    assert b"a=1" in asked
    answered = answer_head(b"HTTP/1.1 200 OK\r\n" + ours, prefix, guest=not prefix)
    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answered.endswith(b"\r\n")
    assert b"agentcube-share=v" not in answered
    assert b"clear-site-data" not in answered.lower()
    for line in answered.split(b"\r\n")[1:-1]:
        assert b":" in line
        if line.lower().startswith(b"set-cookie:"):
            assert b"domain" not in line.lower()
            assert not prefix or b"Path=" + prefix in line
    assert answered.count(b"sandbox allow-") == (1 if prefix else 0)
    assert answered.count(b"frame-ancestors 'self'") == (0 if prefix else 1)
