"""Reading streams of events: wherever they are cut, nothing is lost and nothing comes twice. No I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcube import StreamReplaced
from agentcube.events import (
    CellEnded,
    CellEvent,
    CellStarted,
    Displayed,
    DisplayUpdated,
    Exited,
    FileChanged,
    Gap,
    OutputCleared,
    ProcessEvent,
    Started,
    Stderr,
    Stdout,
)
from agentcube.sdk._core import fs, kernels, processes, requests
from agentcube.sdk._core.errors import InvalidArgument, UnexpectedAnswer
from agentcube.sdk._core.http import request_options
from agentcube.sdk._core.kernels import CellTrack
from agentcube.sdk._core.lines import LINE_BYTES_MAX, Lines
from agentcube.sdk._core.process_track import ProcessTrack
from agentcube.sdk._core.requests import Request

PLACE = requests.place_of_session("http://h", "s-1")


def _line(event: str, **members: Any) -> bytes:
    return json.dumps({"event": event, **members}).encode() + b"\n"


def _out(name: str, offset: int, data: bytes) -> bytes:
    return _line(name, offset=offset, data_base64=base64.b64encode(data).decode())


# --- lines ------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), max_size=5), st.data())
def test_lines_come_whole_whatever_pieces_they_come_in(
    objects: list[dict[str, str]], data: st.DataObject
) -> None:
    stream = b"".join(json.dumps(one).encode() + b"\r\n\n" for one in objects)
    lines, found, at = Lines("x"), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 40))
        found += list(lines.feed(stream[at : at + size]))
        at += size
    assert found == objects


@pytest.mark.parametrize("bad", [b"<html>\n", b"[1]\n", b"\xff\n"])
def test_what_is_no_stream_of_objects_is_said(bad: bytes) -> None:
    with pytest.raises(UnexpectedAnswer, match="x: a line"):
        list(Lines("x").feed(bad))


def test_a_line_without_end_is_not_collected_for_ever() -> None:
    lines, piece = Lines("x"), b"a" * (LINE_BYTES_MAX // 2)
    assert list(lines.feed(piece)) == []
    assert list(lines.feed(piece)) == []
    with pytest.raises(UnexpectedAnswer, match="more than"):
        list(lines.feed(b"a"))


# --- processes --------------------------------------------------------------------------------------------

OUTPUT = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=30)), max_size=12)


def _answer(written: list[tuple[str, bytes]], request: Request) -> bytes:
    """What a server says to `request` when the program wrote this and ended."""
    asked = dict(request.params)
    at = {name: int(asked.get(name, 0)) for name in ("stdout", "stderr")}
    kept = {name: b"".join(d for n, d in written if n == name) for name in at}
    said, seen = [_line("start", id="p-1", pid=3)], dict.fromkeys(at, 0)
    for name, data in written:
        start, seen[name] = seen[name], seen[name] + len(data)
        if seen[name] > at[name]:
            begin = max(start, at[name])
            said.append(_out(name, begin, kept[name][begin : seen[name]]))
            said.append(_line("ping"))
    ends = {name: len(data) for name, data in kept.items()}
    said.append(_line("exit", exit_code=3, signal=None, timed_out=False, duration=1.0, **ends))
    return b"".join(said)


@settings(max_examples=25)
@given(OUTPUT, st.data())
def test_the_output_of_a_process_is_whole_wherever_it_is_cut(
    written: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    track = ProcessTrack(PLACE, processes.start_process(PLACE, ["x"]))
    events: list[ProcessEvent] = []
    for _ in range(20):
        answer = _answer(written, track.request())
        track.restart()
        cut = data.draw(st.integers(0, len(answer)))
        for piece in (answer[: cut // 2], answer[cut // 2 : cut]):
            events += track.take(piece)
        if track.ended:
            break
    else:
        track.restart()
        events += track.take(_answer(written, track.request()))
    assert [type(e) for e in events if isinstance(e, Started | Exited)] == [Started, Exited]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Exited)
    for kind, name in ((Stdout, "stdout"), (Stderr, "stderr")):
        pieces = [e for e in events if isinstance(e, kind)]
        whole = b"".join(d for n, d in written if n == name)
        assert b"".join(p.data for p in pieces) == whole
        assert "".join(p.text for p in pieces) == whole.decode("utf-8", "replace")
        at = 0
        for piece in pieces:
            assert piece.offset == at
            at += len(piece.data)


def test_the_first_request_starts_and_later_ones_confirm() -> None:
    start = processes.start_process(PLACE, "sleep 1", timeout_s=5)
    assert start.json == {"shell": "sleep 1", "timeout": "5s", "grace": "30s"}
    assert start.repeatable
    assert len(start.headers["idempotency-key"]) == 32
    track = ProcessTrack(PLACE, start, owned=True)
    assert track.request().headers == start.headers
    assert track.cancellation() is None
    taken = list(
        track.take(
            _line("start", id="p-1", pid=3) + _out("stderr", 0, b"ab") + _line("more", stdout=0, stderr=2)
        )
    )
    assert [type(e) for e in taken] == [Started, Stderr]
    assert track.more
    again = track.request()
    assert (again.method, again.url) == ("GET", "http://h/v1/sessions/s-1/processes/p-1/output")
    assert again.params == {"stdout": 0, "stderr": 2, "follow": "true", "encoding": "base64"}
    kill = track.cancellation()
    assert kill is not None
    assert (kill.method, kill.url) == ("DELETE", "http://h/v1/sessions/s-1/processes/p-1")


def test_output_that_is_gone_is_told_once() -> None:
    track = ProcessTrack(PLACE, id="p-1")
    said = (
        _line("start", id="p-1", pid=3)
        + _out("stdout", 0, b"a\xc3")
        + _line("gap", stream="stdout", **{"from": 2, "to": 10})
        + _out("stdout", 10, b"b")
        + _out("stdout", 20, b"c")
        + _line("exit", exit_code=0, stdout=21, stderr=0)
    )
    events = list(track.take(said))
    assert [e for e in events if isinstance(e, Gap)] == [
        Gap(stream="stdout", start=2, end=10),
        Gap(stream="stdout", start=11, end=20),
    ]
    assert "".join(e.text for e in events if isinstance(e, Stdout)) == "abc"


def test_a_gap_is_not_told_again_by_the_next_connection() -> None:
    track = ProcessTrack(PLACE, id="p-1")
    begin = _line("start", id="p-1", pid=3)
    first = list(track.take(begin + _line("gap", stream="stdout", **{"from": 0, "to": 10})))
    track.restart()
    again = _line("gap", stream="stdout", **{"from": 0, "to": 15}) + _out("stdout", 15, b"x")
    second = list(track.take(begin + again))
    gaps = [e for e in (*first, *second) if isinstance(e, Gap)]
    assert gaps == [Gap(stream="stdout", start=0, end=10), Gap(stream="stdout", start=10, end=15)]


def test_an_end_that_skips_output_is_not_believed_at_once() -> None:
    track = ProcessTrack(PLACE, id="p-1")
    ends = {"exit_code": 0, "stdout": 3, "stderr": 0}
    track.request()
    assert [
        type(e)
        for e in track.take(_line("start", id="p-1", pid=3) + _out("stdout", 0, b"a") + _line("exit", **ends))
    ]
    assert not track.ended
    assert track.more
    track.request()
    track.restart()
    events = list(track.take(_line("start", id="p-1", pid=3) + _line("exit", **ends)))
    assert [type(e) for e in events] == [Gap, Exited]
    assert track.ended


def test_a_stream_that_was_taken_over_says_so_and_kills_nothing() -> None:
    track = ProcessTrack(PLACE, processes.start_process(PLACE, ["x"]), owned=True)
    with pytest.raises(StreamReplaced, match="another reader"):
        list(track.take(_line("start", id="p-1", pid=3) + _line("replaced")))
    assert track.cancellation() is None


@pytest.mark.parametrize(
    "bad",
    [
        _line("stdout", offset=0, data_base64="%%"),
        _line("stdout", offset=0, data_base64="é"),
        _line("stdout", offset=0),
        _line("stdout", data_base64=""),
        _line("stdout", offset=True, data_base64=""),
        _line("exit"),
        _line("start", pid=1),
    ],
)
def test_events_that_make_no_sense_are_an_unexpected_answer(bad: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        list(ProcessTrack(PLACE, processes.start_process(PLACE, ["x"])).take(bad))


def test_events_of_newer_servers_are_ignored() -> None:
    track = ProcessTrack(PLACE, id="p-1")
    assert list(track.take(_line("weather", sun=True) + b'{"no": "event"}\n' + _line("ping"))) == []


@pytest.mark.parametrize("bad", ["", "  ", [], [""]])
def test_an_empty_command_is_refused_here(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="empty"):
        processes.start_process(PLACE, bad)


def test_input_is_open_given_or_absent() -> None:
    def body(stdin: Any) -> dict[str, Any]:
        made: dict[str, Any] = processes.start_process(PLACE, ["x"], stdin=stdin, background=True).json
        return {k: v for k, v in made.items() if k not in ("command", "background")}

    assert body(None) == body(False) == {}
    assert body(True) == {"stdin": "open"}
    assert body("ä") == body("ä".encode()) == {"input_base64": "w6Q="}
    with pytest.raises(InvalidArgument, match="stdin=True"):
        body(b"x" * (processes.INPUT_BYTES_MAX + 1))


# --- cells ------------------------------------------------------------------------------------------------

CELL = [
    {"event": "start", "seq": 1, "execution": "e-1", "kernel": "main", "execution_count": 4},
    {"event": "stdout", "seq": 2, "text": "ä"},
    {"event": "ping"},
    {"event": "stderr", "seq": 3, "text": "b"},
    {"event": "display_data", "seq": 4, "data": {"text/plain": "d"}, "metadata": {}, "display_id": "i"},
    {
        "event": "update_display_data",
        "seq": 5,
        "data": {"text/plain": "e"},
        "metadata": {},
        "display_id": "i",
    },
    {"event": "of_a_newer_server", "seq": 6},
    {"event": "clear_output", "seq": 7, "wait": True},
    {"event": "execute_result", "seq": 8, "data": {"text/plain": "f"}, "metadata": {}, "execution_count": 4},
    {"event": "end", "seq": 9, "status": "ok", "execution_count": 4, "duration": 0.5, "state_lost": False},
]
KINDS = [CellStarted, Stdout, Stderr, Displayed, DisplayUpdated, OutputCleared, Displayed, CellEnded]


def _cell(after: int) -> bytes:
    return b"".join(json.dumps(e).encode() + b"\n" for e in CELL if int(str(e.get("seq", after + 1))) > after)


@settings(max_examples=25)
@given(st.data())
def test_the_events_of_a_cell_are_whole_wherever_they_are_cut(data: st.DataObject) -> None:
    track = CellTrack(PLACE, "main", kernels.execute_cell(PLACE, "main", "x", create="python"))
    events: list[CellEvent] = []

    def asked() -> int:
        request = track.request()
        assert request.url.endswith("/execute" if request.method == "POST" else "/executions/e-1")
        return int(dict(request.params).get("after", 0))

    for _ in range(20):
        repeat = data.draw(st.integers(0, asked()), label="the server repeats from")
        answer = _cell(repeat)
        track.restart()
        events += track.take(answer[: data.draw(st.integers(0, len(answer)))])
        if track.ended:
            break
    else:
        track.restart()
        events += track.take(_cell(asked()))
    assert [type(e) for e in events] == KINDS


def test_events_of_a_cell_that_are_missing_are_told() -> None:
    track = CellTrack(PLACE, "main", kernels.execute_cell(PLACE, "main", "x"))
    lines = [CELL[0], {"event": "gap", "from": 2, "to": 4}, CELL[5], CELL[8]]
    events = list(track.take(b"".join(json.dumps(e).encode() + b"\n" for e in lines)))
    assert [e for e in events if isinstance(e, Gap)] == [
        Gap(stream="events", start=2, end=4),
        Gap(stream="events", start=6, end=7),
    ]


def test_a_cell_is_sent_with_its_bounds() -> None:
    request = kernels.execute_cell(PLACE, "main", "x", create="sh", timeout_s=1.5, wait_s=60)
    assert request.json == {
        "code": "x",
        "grace": "30s",
        "timeout": "1500ms",
        "wait": "60s",
        "create": {"language": "bash"},
    }
    assert request.timeout_s > 60
    for bad in ({"wait_s": 601}, {"wait_s": -1}, {"timeout_s": 0}, {"create": "cobol"}):
        with pytest.raises(InvalidArgument):
            kernels.execute_cell(PLACE, "main", "x", **bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="write a file"):
        kernels.execute_cell(PLACE, "main", "ä" * kernels.CODE_BYTES_MAX)
    with pytest.raises(InvalidArgument, match="text"):
        kernels.execute_cell(PLACE, "main", b"x")  # type: ignore[arg-type]


# --- watches ----------------------------------------------------------------------------------------------


def test_a_watch_that_was_lost_says_that_something_may_have_happened() -> None:
    track = fs.WatchTrack(fs.watch_files(PLACE, "src", recursive=True))

    def taken(*lines: bytes) -> Iterator[FileChanged]:
        track.request()
        track.restart()
        return track.take(b"".join(lines))

    first = list(
        taken(
            _line("ready"), _line("create", path="a", is_dir=True), _line("rename", path="b", **{"from": "a"})
        )
    )
    assert first == [
        FileChanged(kind="ready"),
        FileChanged(kind="create", path="a", is_dir=True),
        FileChanged(kind="rename", path="b", from_path="a"),
    ]
    assert list(taken(_line("ready"), _line("novelty", path="x"))) == [FileChanged(kind="overflow")]
    assert track.cancellation() is None


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "text"), [(0o644, "0644"), ("644", "0644"), ("0755", "0755"), (0, "0000"), (0o4755, "4755")]
)
def test_permissions_are_octal_text(mode: int | str, text: str) -> None:
    assert fs.permissions(mode) == text


@pytest.mark.parametrize("mode", ["", "rwx", "8", -1, 0o10000, True, 1.5])
def test_permissions_that_are_none_are_refused(mode: Any) -> None:
    with pytest.raises(InvalidArgument, match="0o644"):
        fs.permissions(mode)


@pytest.mark.parametrize("path", ["", ".", "/", "a/..", "x\0"])
def test_the_workspace_itself_is_no_file(path: str) -> None:
    with pytest.raises(InvalidArgument):
        fs.get_file(PLACE, path)


def test_names_that_are_no_utf8_are_their_bytes() -> None:
    name = b"d/\xff \xc3\xa4".decode("utf-8", "surrogateescape")
    assert fs.get_file(PLACE, name).url == "http://h/v1/sessions/s-1/files/d/%FF%20%C3%A4"
    asked = request_options(fs.stat_file(PLACE, name), connect_timeout_s=1, token=None)
    assert asked["url"] == "http://h/v1/sessions/s-1/fs/stat?path=d%2F%FF%20%C3%A4&follow=true"
    made = request_options(fs.make_directory(PLACE, name), connect_timeout_s=1, token=None)
    assert json.loads(made["content"])["path"] == name


def test_paths_cannot_reach_another_route() -> None:
    assert fs.get_file(PLACE, "/d/../kernels/a b?#").url.endswith("/files/kernels/a%20b%3F%23")
    for path in ("../../kernels", "..", "d/../../x", "/../x"):
        with pytest.raises(InvalidArgument, match="leads out of the workspace"):
            fs.get_file(PLACE, path)
    assert processes.process_call(PLACE, "DELETE", "a/../b", "end").url.endswith("/processes/a%2F..%2Fb")


def test_what_is_no_command_and_no_input_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not NoneType"):
        processes.start_process(PLACE, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="stdin must be text or bytes, not int"):
        processes.start_process(PLACE, "cat", stdin=3)  # type: ignore[arg-type]
