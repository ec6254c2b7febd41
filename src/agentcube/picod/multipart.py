"""multipart/form-data (RFC 7578) as it streams by: bytes in, parts out. No I/O, bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Union

PARTS_MAX = 16
PART_HEAD_BYTES_MAX = 8 * 1024
PREAMBLE_BYTES_MAX = 8 * 1024

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046 §5.1.1
_PARAMETER = re.compile(r';\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')


class MultipartError(ValueError):
    """The body is no such form. The message is for the caller."""


class PartHead:
    """A part begins. `name` is its field's."""

    def __init__(self, name: str) -> None:
        self.name = name


class PartEnd:
    """The current part is complete."""


Event = Union[PartHead, bytes, PartEnd]


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type of multipart/form-data names; None for another type.

    Raises:
        MultipartError: it names none.
    """
    kind, _, _ = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    boundary = _parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise MultipartError("multipart/form-data without a proper boundary")
    return boundary.encode("ascii")


def _parameters(value: str) -> dict[str, str]:
    found = {}
    for name, quoted, plain in _PARAMETER.findall(value):
        found[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
    return found


_PREAMBLE, _AFTER_BOUNDARY, _HEAD, _DATA, _END = range(5)


class MultipartParser:
    """Push parser. `feed` yields what became certain; `complete` after the closing boundary."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"\r\n--" + boundary
        # The first boundary has no line end before it: this one makes all alike.
        self._buffer = bytearray(b"\r\n")
        self._state = _PREAMBLE
        self._parts = 0

    @property
    def complete(self) -> bool:
        """Whether the form's end was seen; what follows is ignored."""
        return self._state == _END

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events in `data`. Raises MultipartError."""
        if self._state == _END:
            return
        self._buffer += data
        while True:
            if self._state in (_PREAMBLE, _DATA):
                at = self._buffer.find(self._mark)
                if at < 0:
                    yield from self._before_mark()
                    return
                if self._state == _DATA:
                    if at:
                        yield bytes(self._buffer[:at])
                    yield PartEnd()
                del self._buffer[: at + len(self._mark)]
                self._state = _AFTER_BOUNDARY
            elif self._state == _AFTER_BOUNDARY:
                if len(self._buffer) < 2:
                    return
                self._on_boundary(bytes(self._buffer[:2]))
                if self._state == _END:
                    self._buffer.clear()
                    return
            else:
                head = self._take_head()
                if head is None:
                    return
                yield head

    def _before_mark(self) -> Iterator[Event]:
        """Give out what cannot be the start of a boundary."""
        keep = len(self._mark) - 1
        sure = len(self._buffer) - keep
        if self._state == _PREAMBLE:
            if sure > PREAMBLE_BYTES_MAX:
                raise MultipartError("the form does not begin with its boundary")
        elif sure > 0:
            data = bytes(self._buffer[:sure])
            del self._buffer[:sure]
            yield data

    def _on_boundary(self, following: bytes) -> None:
        if following == b"--":
            self._state = _END
            return
        if following != b"\r\n":
            raise MultipartError("malformed boundary")
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise MultipartError(f"the form has more than {PARTS_MAX} parts")
        self._state = _HEAD  # the line end stays: it may belong to the empty line of a bare head

    def _take_head(self) -> PartHead | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > PART_HEAD_BYTES_MAX:
            if len(self._buffer) > PART_HEAD_BYTES_MAX:
                raise MultipartError("the head of a part is too large")
            return None
        lines = bytes(self._buffer[:end]).decode("utf-8", "replace").split("\r\n")
        del self._buffer[: end + 4]
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-disposition":
                field = _parameters(value).get("name")
                if field is not None:
                    self._state = _DATA
                    return PartHead(field)
        raise MultipartError("a part has no name")
