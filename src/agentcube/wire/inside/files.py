"""Files of a session: bodies, events and calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from agentcube.wire.inside.call import BYTES, TAR, Answered, Asked, Call, Ping, Query, Time

TAG = "Inside a session: files"

Path = Annotated[
    str,
    Field(
        description="Relative to the workspace, where absolute paths begin, too. Bytes that are no UTF-8 are lone "
        "surrogates.",
        examples=["src/main.py"],
    ),
]
Octal = Annotated[str, Field(description="Permission bits, octal.", examples=["0644"])]
PATH = Query("path", "Relative to the workspace.", "the workspace")


class EntryBody(Answered):
    """A file, directory or other entry. `size` in bytes; `mode` as `ls -l` writes it; `target` of a link."""

    path: Path
    name: str
    type: Literal["file", "directory", "symlink", "fifo", "socket", "device"]
    size: int
    mode: Annotated[str, Field(examples=["-rw-r--r--"])]
    permissions: Octal
    uid: int
    gid: int
    modified: Time
    is_dir: bool
    target: str | None = None


class EntryList(Answered):
    """Entries in order, a directory before what is in it; `next_cursor` where there are more."""

    files: list[EntryBody]
    next_cursor: str | None = None


class ListedFile(Answered):
    """An entry as the Go system has it."""

    name: str
    size: int
    modified: Time
    mode: str
    is_dir: bool


class FileList(Answered):
    """The entries of one directory, as the Go system has them. `truncated`: there are more."""

    files: list[ListedFile]
    truncated: Literal[True] | None = None


class WriteFile(Asked):
    """A whole file in a JSON body."""

    path: Path
    content: Annotated[str, Field(description="The bytes in base64.")] = ""
    mode: Octal | None = None


class WrittenFile(Answered):
    """A file that was written."""

    path: Path
    size: int
    mode: str
    modified: Time


class ChangeFile(Asked):
    """What to change of an entry; with `recursive` of all below it, too."""

    permissions: Octal | None = None
    modified: Time | None = None
    recursive: bool = False


class MakeDirectory(Asked):
    """A directory to make."""

    path: Path
    mode: Octal = "0755"
    parents: bool = True
    exist_ok: bool = True


class MoveFile(Asked):
    """An entry and its new name; missing directories above that are made."""

    source: Path
    destination: Path
    overwrite: bool = False


class CopyFile(Asked):
    """An entry and where its copy goes. Modes, times and links are kept; `overwrite` merges directories."""

    source: Path
    destination: Path
    recursive: bool = True
    overwrite: bool = False


class Unpacked(Answered):
    """What came out of an archive."""

    entries: int
    bytes: int


class WatchReady(Answered):
    """The first event: everything from here on is told."""

    event: Literal["ready"]
    path: Path
    is_dir: bool


class FileChangedEvent(Answered):
    """Something happened to `path`; of a rename, it was `from` before. `overflow`: list what is below `path` again."""

    event: Literal["create", "modify", "delete", "rename", "overflow"]
    path: Path
    is_dir: bool
    from_: Annotated[Path | None, Field(alias="from")] = None


class WatchEnded(Answered):
    """The directory is not at that path any more; the stream is over."""

    event: Literal["end"]
    reason: Annotated[str, Field(examples=["gone"])]


EVENTS: tuple[Any, ...] = (WatchReady, FileChangedEvent, WatchEnded, Ping)

CALLS = (
    Call(
        method="GET",
        path="/files",
        tag=TAG,
        summary="List files",
        description="Without any of the other fields: one directory, as the Go system lists it. With one: entries.",
        query=(
            PATH,
            Query("recursive", "true: everything below.", "true with `glob` or `depth`"),
            Query("glob", "Only paths that match, such as `**/*.py`; names with a dot first must be named."),
            Query("depth", "At most so many levels."),
            Query("limit", "At most so many.", "10000"),
            Query("cursor", "`next_cursor` of the page before."),
        ),
        answers={200: (EntryList, FileList)},
        problems=("invalid", "file_not_found"),
    ),
    Call(
        method="POST",
        path="/files",
        tag=TAG,
        summary="Write a file (Go system)",
        description="JSON, or a form with `path`, `mode` and `file`.",
        body=WriteFile,
        answers={200: WrittenFile},
        problems=("invalid", "workspace_full", "body_too_large"),
    ),
    Call(
        method="GET",
        path="/files/{path*}",
        tag=TAG,
        summary="Read a file",
        description="HEAD, too. One range: 206, or 416.",
        headers={
            "Range": "One range of bytes.",
            "If-Range": "An ETag.",
            "If-None-Match": "An ETag: then 304.",
        },
        answers={200: BYTES, 206: BYTES, 304: None},
        problems=("invalid", "file_not_found", "range_not_satisfiable"),
    ),
    Call(
        method="PUT",
        path="/files/{path*}",
        tag=TAG,
        summary="Write a file",
        description="The body is the file, of any size; it appears whole or not at all. With `append` it goes behind "
        "what there is, and what broke off is taken off again. 201: there was none.",
        query=(
            Query("mode", "Permission bits, octal.", "0644"),
            Query("parents", "Make missing directories.", "true"),
            Query("exclusive", "Refuse when there is something of that name.", "false"),
            Query("append", "Add to its end.", "false"),
            Query("offset", "With `append`: only if it has so many bytes."),
        ),
        body=BYTES,
        answers={200: EntryBody, 201: EntryBody},
        problems=("invalid", "file_not_found", "file_exists", "conflict", "workspace_full", "body_too_large"),
    ),
    Call(
        method="PATCH",
        path="/files/{path*}",
        tag=TAG,
        summary="Change permissions and time",
        description="With `recursive` of all that is in a directory, too. Links themselves have no permissions.",
        body=ChangeFile,
        answers={200: EntryBody},
        problems=("invalid", "file_not_found", "forbidden"),
    ),
    Call(
        method="DELETE",
        path="/files/{path*}",
        tag=TAG,
        summary="Delete a file, link or directory",
        description="A link itself, never what it leads to.",
        query=(Query("recursive", "A directory with all that is in it.", "false"),),
        answers={204: None},
        problems=("invalid", "file_not_found", "not_empty", "forbidden"),
    ),
    Call(
        method="GET",
        path="/fs/stat",
        tag=TAG,
        summary="Look at an entry",
        description="Type, size, permissions, owner, time, and where a link leads.",
        query=(PATH, Query("follow", "What a link leads to.", "true")),
        answers={200: EntryBody},
        problems=("invalid", "file_not_found"),
    ),
    Call(
        method="POST",
        path="/fs/mkdir",
        tag=TAG,
        summary="Make a directory",
        description="200: it was there.",
        body=MakeDirectory,
        answers={200: EntryBody, 201: EntryBody},
        problems=("invalid", "file_not_found", "file_exists", "workspace_full"),
    ),
    Call(
        method="POST",
        path="/fs/move",
        tag=TAG,
        summary="Move an entry",
        description="Within the workspace, in one step: nobody sees half of it.",
        body=MoveFile,
        answers={200: EntryBody},
        problems=("invalid", "file_not_found", "file_exists"),
    ),
    Call(
        method="POST",
        path="/fs/copy",
        tag=TAG,
        summary="Copy an entry",
        description="With permissions and times; links are copied as links.",
        body=CopyFile,
        answers={200: EntryBody},
        problems=("invalid", "file_not_found", "file_exists", "workspace_full"),
    ),
    Call(
        method="GET",
        path="/fs/tar",
        tag=TAG,
        summary="Get a directory as an archive",
        description="Names are relative to it; links are links; sockets, pipes and devices are left out.",
        query=(PATH, Query("gzip", "Compressed.", "false")),
        answers={200: TAR},
        problems=("invalid", "file_not_found"),
    ),
    Call(
        method="PUT",
        path="/fs/tar",
        tag=TAG,
        summary="Unpack an archive",
        description="As it comes in. Names that lead out, devices, pipes and members behind links are refused, naming "
        "them; what came before stays.",
        query=(PATH, Query("gzip", "true, false or auto.", "auto")),
        body=TAR,
        answers={200: Unpacked},
        problems=("invalid", "file_not_found", "workspace_full", "body_too_large"),
    ),
    Call(
        method="GET",
        path="/fs/watch",
        tag=TAG,
        summary="Watch files",
        description="Events, as things happen to the entries of a directory.",
        query=(PATH, Query("recursive", "And to everything below.", "false")),
        events=EVENTS,
        problems=("invalid", "file_not_found", "limit_exceeded"),
    ),
)
