"""What comes of a cell, how it is printed, and that a notebook which shows it is safe from it."""

from __future__ import annotations

import base64
import html
import pickle
import re

import pytest

from agentcube import CellFailed, CommandResult, Execution, Result
from agentcube.events import (
    CellEnded,
    CellError,
    CellEvent,
    CellStarted,
    Displayed,
    DisplayUpdated,
    Exited,
    Gap,
    OutputCleared,
    Started,
    Stderr,
    Stdout,
)
from agentcube.sdk._core import execution as module
from agentcube.sdk._core.execution import CellCollector, CommandCollector

STARTED = CellStarted(execution="e-1", kernel="main", execution_count=3)
ENDED = CellEnded(status="ok", execution_count=3, duration_s=0.5)


def _said(text: str) -> Stdout:
    return Stdout(text=text, data=text.encode())


def _shown(text: str, **fields: object) -> Displayed:
    return Displayed(result=Result(data={"text/plain": text}, **fields))  # type: ignore[arg-type]


def _whole(*events: CellEvent) -> Execution:
    collector = CellCollector()
    for event in (STARTED, *events):
        collector.add(event)
    return collector.execution()


def test_a_cell_is_put_together() -> None:
    done = _whole(_said("a\n"), Stderr(text="b", data=b"b"), _shown("c"), _shown("42", is_value=True), ENDED)
    assert (done.stdout, done.stderr, done.text, done.execution_count) == ("a\n", "b", "42", 3)
    assert (done.id, done.kernel, done.status, done.ok, done.duration_s) == ("e-1", "main", "ok", True, 0.5)
    assert [r.text for r in done.results] == ["c", "42"]
    assert str(done) == "a\nb\nc\n42"
    assert done.check() is done


def test_without_a_value_there_is_no_text() -> None:
    done = _whole(_shown("c"), ENDED)
    assert done.text is None
    assert done.value is None
    assert str(_whole(ENDED)) == ""


def test_an_exception_is_told_and_raised_only_when_asked() -> None:
    error = CellError(name="ValueError", value="no", traceback=("Cell In[3], line 1", "ValueError: no"))
    done = _whole(_said("a"), error, CellEnded(status="error", execution_count=3))
    assert done.error is error
    assert str(done) == "a\nCell In[3], line 1\nValueError: no"
    with pytest.raises(CellFailed, match="ValueError: no") as caught:
        done.check()
    assert caught.value.execution is done
    assert pickle.loads(pickle.dumps(caught.value)).execution == done


@pytest.mark.parametrize(("lost", "text"), [(True, "gone"), (False, "cell timed_out: too slow")])
def test_a_cell_that_did_not_end_by_itself_says_how(lost: bool, text: str) -> None:
    done = _whole(CellEnded(status="timed_out", reason="too slow", state_lost=lost))
    assert done.state_lost is lost
    assert text in str(done)
    assert text in done._repr_mimebundle_()[0]["text/html"]
    with pytest.raises(CellFailed, match="timed_out: too slow"):
        done.check()


def test_cleared_output_is_gone_at_once_or_with_the_next() -> None:
    assert _whole(_said("a"), _shown("b"), OutputCleared(), ENDED).stdout == ""
    kept = _whole(_said("a"), _shown("b"), OutputCleared(wait=True), ENDED)
    assert (kept.stdout, len(kept.results)) == ("a", 1)
    replaced = _whole(_said("a"), _shown("b"), OutputCleared(wait=True), _said("c"), ENDED)
    assert (replaced.stdout, len(replaced.results)) == ("c", 0)


def test_a_display_is_updated_where_it_stands() -> None:
    new = Result(data={"text/plain": "new"}, display_id="i")
    done = _whole(_shown("old", display_id="i"), _shown("other"), DisplayUpdated(result=new), ENDED)
    assert [r.text for r in done.results] == ["new", "other"]


def test_what_a_result_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTPUT_BYTES_MAX", 5)
    monkeypatch.setattr(module, "RESULT_BYTES_MAX", 8)
    done = _whole(_said("abc"), _said("defgh"), _shown("12345"), _shown("6789"), _shown("xy"), ENDED)
    assert (done.stdout, done.truncated) == ("abcde", True)
    assert [r.text for r in done.results] == ["12345", "xy"]
    assert not _whole(_said("abcde"), _shown("12345678"), ENDED).truncated
    monkeypatch.setattr(module, "RESULTS_MAX", 1)
    assert _whole(_shown("1"), _shown("2"), ENDED).truncated


def test_missing_events_make_a_result_truncated() -> None:
    assert _whole(Gap(stream="events", start=2, end=3), ENDED).truncated


def test_a_command_is_put_together() -> None:
    collector = CommandCollector(["x"])
    assert collector.result().exit_code == -1
    collector.add(Started(id="p-1", pid=3))
    collector.add(Stdout(text="a", data=b"\xff"))
    collector.add(Gap(stream="stderr", start=0, end=9))
    collector.add(Exited(exit_code=137, signal="SIGKILL", duration_s=2.0))
    done = collector.result()
    assert (done.stdout_bytes, done.exit_code, done.signal, done.duration_s) == (b"\xff", 137, "SIGKILL", 2.0)
    assert (done.stdout_truncated, done.stderr_truncated, done.command) == (False, True, ("x",))


# --- notebooks --------------------------------------------------------------------------------------------

EVIL = "<script>parent.document.cookie</script>\"'><img src=x onerror=alert(1)>"
PNG = base64.b64encode(b"\x89PNG").decode()


def _dangerous(text: str) -> bool:
    """Whether markup of the sandbox stands in the page itself: anything beyond what this module writes."""
    outside = re.sub(r'<iframe [^>]*srcdoc="[^"]*"[^>]*></iframe>', "", text)
    outside = re.sub(
        r'<img src="data:image/[a-z+]+;base64,[A-Za-z0-9+/=]*" style="max-width:100%">', "", outside
    )
    outside = re.sub(r'</?(pre( style="color:#[0-9a-f]{6}")?|p|em)>', "", outside)
    return "<" in outside


def test_forms_of_a_result_are_read_by_their_names() -> None:
    data = {
        "text/plain": "p",
        "text/html": "<b>",
        "text/markdown": "m",
        "text/latex": "l",
        "image/svg+xml": "<svg/>",
        "application/javascript": "j",
        "image/png": PNG,
        "image/jpeg": PNG,
        "application/pdf": PNG,
        "application/json": {"a": [1]},
        "application/x-own": PNG,
    }
    result = Result(data=data)
    assert (result.text, result.html, result.markdown, result.latex) == ("p", "<b>", "m", "l")
    assert (result.svg, result.javascript, result.json) == ("<svg/>", "j", {"a": [1]})
    assert result.png == result.jpeg == result.pdf == result.get("application/x-own") == b"\x89PNG"
    assert result.get("image/svg+xml") == "<svg/>"
    assert result.get("application/json") == {"a": [1]}
    assert result.formats == tuple(data)
    assert Result(data={"image/png": "%%%é"}).png is None
    assert Result(data={"text/plain": 7}).text is None
    assert str(Result(data={"image/png": PNG})) == "<image/png>"


def test_html_is_shown_in_a_frame_of_nobodys_origin_without_network() -> None:
    shown, _ = Result(data={"text/html": EVIL, "text/plain": "p"})._repr_mimebundle_()
    assert shown["text/plain"] == "p"
    frame = shown["text/html"]
    assert not _dangerous(frame)
    sandbox = re.search(r'sandbox="([^"]*)"', frame)
    assert sandbox is not None
    assert "allow-same-origin" not in sandbox[1]
    assert "allow-top-navigation" not in sandbox[1]
    inside = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])  # type: ignore[index]
    assert inside.endswith(EVIL)
    assert "default-src 'none'" in inside
    assert inside.index("Content-Security-Policy") < inside.index("<script>")


def test_what_front_ends_would_run_stays_out_of_the_bundle() -> None:
    data = dict.fromkeys(("application/javascript", "text/markdown", "text/latex", "image/svg+xml"), EVIL)
    data |= {"application/vnd.jupyter.widget-view+json": EVIL, "text/plain": EVIL}
    shown, metadata = Result(data=data, metadata={"text/html": {"isolated": False}})._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"}
    assert not _dangerous(shown["text/html"])
    assert shown["text/html"].startswith('<img src="data:image/svg+xml;base64,')
    assert metadata == {}


def test_pictures_are_shown_with_their_size_and_nothing_else_of_what_is_said_of_them() -> None:
    metadata = {"image/png": {"width": 10, "height": "x", "onload": EVIL}}
    shown, said = Result(data={"image/png": PNG}, metadata=metadata)._repr_mimebundle_()
    assert shown == {"image/png": PNG}
    assert said == {"image/png": {"width": 10}}


def test_a_whole_cell_is_shown_as_one_page_that_is_safe() -> None:
    results = [
        Displayed(result=Result(data={"text/html": EVIL})),
        Displayed(result=Result(data={"image/svg+xml": EVIL})),
        Displayed(result=Result(data={"image/png": PNG})),
        Displayed(result=Result(data={"application/json": {EVIL: EVIL}})),
        Displayed(result=Result(data={"text/plain": EVIL})),
        Displayed(result=Result(data={"text/markdown": EVIL})),
    ]
    error = CellError(name=EVIL, value=EVIL, traceback=(EVIL,))
    done = _whole(
        _said(EVIL),
        Stderr(text=EVIL, data=EVIL.encode()),
        *results,
        error,
        CellEnded(status=EVIL, reason=EVIL),
    )
    shown, _ = done._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"}
    assert not _dangerous(shown["text/html"])
    assert not _dangerous(_whole(CellEnded(status=EVIL, reason=EVIL))._repr_mimebundle_()[0]["text/html"])


def test_a_cell_with_one_result_shows_itself_as_that() -> None:
    done = _whole(Displayed(result=Result(data={"image/png": PNG}, is_value=True)), ENDED)
    assert done._repr_mimebundle_()[0] == {"image/png": PNG}
    assert done.pngs == [b"\x89PNG"]


def test_a_command_shows_itself_and_how_it_ended() -> None:
    done = CommandResult(stdout_bytes=b"<b>out\n", stderr_bytes=b"err\n", exit_code=143, signal="SIGTERM")
    assert str(done) == "<b>out\nerr\nexit code 143 (SIGTERM)"
    shown = done._repr_mimebundle_()[0]
    assert shown["text/plain"] == str(done)
    assert shown["text/html"] == (
        '<pre>&lt;b&gt;out\n</pre>\n<pre style="color:#a40000">err\n</pre>\n<p><em>exit code 143 (SIGTERM)</em></p>'
    )
    well = CommandResult(stdout_bytes=b"fine\n", stderr_bytes=b"", exit_code=0)
    assert (str(well), well._repr_mimebundle_()[0]["text/html"]) == ("fine", "<pre>fine\n</pre>")
    late = CommandResult(stdout_bytes=b"", stderr_bytes=b"", exit_code=124, timed_out=True)
    assert str(late) == "timed out (exit code 124)"


def test_the_repr_of_a_result_has_a_beginning_of_each_form_only() -> None:
    said = repr(Result(data={"text/plain": "<Figure>", "image/png": "x" * 100_000}, is_value=True))
    assert said == f"<Value text/plain: '<Figure>', image/png: {'x' * 60!r}… (100000 characters)>"
