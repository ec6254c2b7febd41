"""What a kernel's host makes of what cells show, and PicoD of that: one JSON object, whatever it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube import kernelhost
from agentcube.kernelhost import bundles, channel
from agentcube.picod import kernel_events, kernel_forks, kernel_link

Header = dict[str, Any]


def message(members: Header, blobs: list[channel.Blob]) -> bytes:
    """As `channel.Channel.send` has it."""
    listed = [(name, kind, len(content)) for name, kind, content in blobs]
    header = json.dumps({"op": "event", "blobs": listed, "n": 1, **members}).encode("ascii")
    return b"".join((len(header).to_bytes(4, "big"), header, *(content for *_, content in blobs)))


def told(members: Header, blobs: list[channel.Blob]) -> Any:
    """What a client gets in the end."""
    name, inner = kernel_events.event(*kernel_events.parse(message(members, blobs)))
    assert "\n" not in inner
    return {"event": name, **json.loads("{" + inner + "}")}


def test_each_kind_of_data_arrives() -> None:
    data = {
        "text/plain": "ü\n\u2028\ud800",
        "image/png": b"\x00\xff",
        "image/jpeg": "AAEC\nAwQ=\n",
        "image/svg+xml": "<svg/>",
        "image/gif": "no base64 at all!",
        "application/json": {"a": (1, None), 2: math.inf, "b": {"c": b"\x00"}},
        "application/x+json": "a text of JSON",
    }
    assert told(*bundles.display("display_data", data, {"image/png": {"width": 3}}, display_id="d")) == {
        "event": "display_data",
        "data": {
            "text/plain": "ü\n\u2028?",
            "image/png": "AP8=",
            "image/jpeg": "AAECAwQ=",
            "image/svg+xml": "<svg/>",
            "image/gif": "no base64 at all!",
            "application/json": {"a": [1, None], "2": None, "b": {"c": "AA=="}},
            "application/x+json": "a text of JSON",
        },
        "metadata": {"image/png": {"width": 3}},
        "display_id": "d",
    }


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "value",
    [Unspeakable(), [0] * 600_000, "x" * (17 << 20), b"x" * (13 << 20), "\x00" * (3 << 20)],
    ids=["no JSON", "too many", "too long", "too long in base64", "too long when escaped"],
)
def test_what_cannot_be_sent_is_named(value: object) -> None:
    event = told(
        *bundles.display("execute_result", {"a/b": value, "text/plain": "so"}, None, execution_count=1)
    )
    assert event["data"].keys() == {"text/plain"}
    assert event["data"]["text/plain"].startswith("so\n[left out, too large for one output: a/b")


def test_the_largest_that_fits_is_taken() -> None:
    event = told(*bundles.display("display_data", {"text/html": "ü" * (2_700_000)}, None))
    assert len(event["data"]["text/html"]) == 2_700_000


def test_metadata_that_is_no_json_or_large_is_left_out() -> None:
    assert told(*bundles.display("display_data", {}, {"a": {1: math.nan}}))["metadata"] == {"a": {"1": None}}
    assert told(*bundles.display("display_data", {}, {"a": "x" * 20_000}))["metadata"] == {}
    assert told(*bundles.display("display_data", {}, {"a": Unspeakable()}))["metadata"] == {}


def test_errors_are_bounded() -> None:
    event = told(*bundles.error("E", "v" * (5 << 20), "line\n" * 100_000))
    assert len(event["value"]) < 2 << 20
    assert len(event["traceback"]) <= 20_001
    assert told(*bundles.error("E", "", ""))["traceback"] == []


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["text/plain", "image/png", "a/json", "x"]), json_like), json_like)
def test_whatever_is_shown_arrives_as_one_object(data: dict[str, Any], metadata: Any) -> None:
    about = metadata if isinstance(metadata, dict) else None
    event = told(*bundles.display("display_data", data, about))
    assert event["event"] == "display_data"
    assert event["data"].keys() == data.keys()


@given(st.binary(max_size=200))
def test_nonsense_is_called_so(data: bytes) -> None:
    for candidate in (data, len(data).to_bytes(4, "big") + data):
        try:
            header, blobs = kernel_events.parse(candidate)
        except kernel_events.Nonsense:
            continue
        with pytest.raises(kernel_events.Nonsense):
            kernel_events.event(header, blobs)


@pytest.mark.parametrize(
    ("header", "blobs"),
    [
        ({"event": "nothing"}, []),
        ({"event": None}, []),
        ({"event": "clear_output", "wait": 1}, []),
        ({"event": "display_data", "metadata": []}, []),
        ({"event": "display_data", "metadata": {}, "display_id": 5}, []),
        ({"event": "display_data", "metadata": {}, "display_id": "x" * 300}, []),
        ({"event": "execute_result", "metadata": {}, "execution_count": True}, []),
        ({"event": "execute_result", "metadata": {}, "execution_count": -1}, []),
        ({"event": "error"}, [("name", "text", b"")]),
        ({"event": "error"}, [(name, "json", b"1") for name in ("name", "value", "traceback")]),
        ({"event": "display_data", "metadata": {}}, [("a", "base64", b"AA=A")]),
        ({"event": "display_data", "metadata": {}}, [("a", "json", b"{}{}")]),
        ({"event": "display_data", "metadata": {}}, [("a", "json", b"[1,\n2]")]),
        ({"event": "display_data", "metadata": {}}, [("a", "json", '"ü"'.encode())]),
        ({"event": "display_data", "metadata": {}}, [("a", "json", b"[" * 100_000)]),
        ({"event": "display_data", "metadata": {}}, [("a", "json", b"[" + b"1," * 500_001 + b"1]")]),
        ({"event": "display_data", "metadata": {}}, [("a", "json", b"-Infinity")]),
        ({"event": "display_data", "metadata": {}}, [("a", "odd", b"")]),
        ({"event": "display_data", "metadata": {}}, [("a", "text", b""), ("a", "text", b"")]),
        ({"event": "display_data", "metadata": {}}, [("a" * 300, "text", b"")]),
    ],
)
def test_wrong_events_are_nonsense(header: Header, blobs: list[channel.Blob]) -> None:
    with pytest.raises(kernel_events.Nonsense):
        told(header, blobs)


def test_both_ends_speak_of_the_same_sizes() -> None:
    assert kernel_link.PACKET_BYTES == channel.PACKET_BYTES
    assert kernel_events.HEADER_BYTES_MAX >= 2 * bundles.METADATA_BYTES_MAX
    assert kernel_events.MESSAGE_BYTES_MAX > bundles.EVENT_BYTES_MAX


def test_the_sources_that_a_python_is_given_are_all_there_are() -> None:
    folder = Path(kernelhost.__file__).parent
    assert set(kernel_forks.MODULES) == {path.stem for path in folder.glob("*.py")}
    sources = json.loads(kernel_forks.load_sources())
    assert sources["agentcube.kernelhost.host"] == (folder / "host.py").read_text()
