"""Remote files given to what reads local ones."""

from __future__ import annotations

import csv
import io
import zipfile

from agentcube import Sandbox
from tests.integration.sdk.wire_server import WireServer


def test_lines_of_a_table(server: WireServer) -> None:
    rows = "".join(f"{n},ä{n}\n" for n in range(5000))
    with Sandbox(url=server.url) as box:
        box.files.write("table.csv", "n,name\n" + rows)
        with box.files.reader("table.csv") as file:
            text = io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8")  # type: ignore[arg-type]  # duck typed
            read = list(csv.DictReader(text))
    assert read[0] == {"n": "0", "name": "ä0"}
    assert read[-1] == {"n": "4999", "name": "ä4999"}
    assert len(read) == 5000


def test_members_of_an_archive_are_fetched_as_they_are_wanted(server: WireServer) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("large", bytes(1_000_000))
        archive.writestr("small", b"content")
    with Sandbox(url=server.url) as box:
        box.files.write("a.zip", made.getvalue())
        with box.files.reader("a.zip") as file, zipfile.ZipFile(file) as archive:  # type: ignore[arg-type]  # duck typed
            assert archive.namelist() == ["large", "small"]
            assert archive.read("small") == b"content"
        ranges = [
            s.headers["range"] for s in server.requests("GET", ".*/files/a.zip") if "range" in s.headers
        ]
    assert ranges
