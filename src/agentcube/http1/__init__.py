"""HTTP/1.1 heads and body framing as pure functions on bytes. Standard library only, no I/O.

Python 3.9 syntax: PicoD runs this under a sandbox's interpreter. Server in short: `request_end`
until it gives an offset, `parse_request` of the bytes up to it, `track(head.body)` for what follows.
"""

from agentcube.http1.errors import ProtocolError
from agentcube.http1.fields import (
    HOP_BY_HOP,
    check_host,
    check_transfer_encoding,
    duplicate,
    options,
    parse_content_length,
    parse_field,
)
from agentcube.http1.framing import FORBIDDEN_TRAILERS, Body, ChunkedBody, CloseBody, LengthBody, track
from agentcube.http1.heads import (
    CHUNKED,
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
    parse_request,
    parse_request_line,
    parse_response,
    parse_status_line,
    request_body,
    request_end,
    response_body,
    response_end,
    split_head,
)
from agentcube.http1.writing import (
    CONTINUE,
    LAST_CHUNK,
    REASONS,
    chunk,
    request_head,
    response,
    response_head,
)

__all__ = [
    "CHUNKED",
    "CONTINUE",
    "FORBIDDEN_TRAILERS",
    "HEADERS_MAX",
    "HEAD_BYTES_MAX",
    "HOP_BY_HOP",
    "LAST_CHUNK",
    "REASONS",
    "UNTIL_CLOSE",
    "Body",
    "ChunkedBody",
    "CloseBody",
    "LengthBody",
    "ProtocolError",
    "RequestHead",
    "ResponseHead",
    "check_host",
    "check_transfer_encoding",
    "chunk",
    "duplicate",
    "options",
    "parse_content_length",
    "parse_field",
    "parse_request",
    "parse_request_line",
    "parse_response",
    "parse_status_line",
    "request_body",
    "request_end",
    "request_head",
    "response",
    "response_body",
    "response_end",
    "response_head",
    "split_head",
    "track",
]
