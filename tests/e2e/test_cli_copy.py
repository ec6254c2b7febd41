"""`cp` on a real server: files and directories, both ways, and progress at a terminal."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e import harness
from tests.e2e.here import cli
from tests.e2e.person import at_terminal


def listed(server: harness.Server, session: str, folder: str) -> list[str]:
    """All that is below a directory of the workspace."""
    done = cli(server, "exec", "-w", folder, session, "--", "find", ".", "-mindepth", "1")
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.decode().split())


def test_a_file_both_ways(server: harness.Server, session: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    there, back = tmp_path / "there.bin", tmp_path / "back.bin"
    there.write_bytes(data)
    there.chmod(0o750)
    assert cli(server, "cp", str(there), f"{session}:in/data.bin").returncode == 0
    assert cli(server, "cp", f"{session}:in/data.bin", str(back)).returncode == 0
    assert back.read_bytes() == data
    modes = cli(server, "exec", session, "--", "stat", "-c", "%a", "in/data.bin").stdout
    assert modes == b"750\n"
    for target, name in (
        (f"{session}:", "there.bin"),
        (f"{session}:in/", "in/there.bin"),
        (f"{session}:in", "in/there.bin"),
    ):
        assert cli(server, "cp", str(there), target).returncode == 0
        assert cli(server, "exec", session, "--", "rm", name).returncode == 0
    assert cli(server, "cp", f"{session}:in/data.bin", str(tmp_path)).returncode == 0
    assert (tmp_path / "data.bin").read_bytes() == data
    assert cli(server, "cp", "-", f"{session}:piped", input=data * 20).returncode == 0
    assert cli(server, "cp", f"{session}:piped", "-").stdout == data * 20


def test_a_directory_both_ways(server: harness.Server, session: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "file").write_bytes(os.urandom(100_000))
    (tree / "run.sh").write_text("echo hi")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("deep/er/file")
    os.mkfifo(tree / "pipe")
    names = ["./deep", "./deep/er", "./deep/er/file", "./link", "./run.sh"]
    done = cli(server, "cp", str(tree), f"{session}:")
    assert done.returncode == 0
    assert b"left out" in done.stderr
    assert b"pipe" in done.stderr
    assert listed(server, session, "tree") == names
    assert cli(server, "cp", str(tree), f"{session}:other").returncode == 0
    assert listed(server, session, "other") == names
    assert cli(server, "cp", f"{tree}/.", f"{session}:other/flat").returncode == 0
    assert listed(server, session, "other/flat") == names
    back = tmp_path / "back"
    assert cli(server, "cp", f"{session}:tree", str(back)).returncode == 0
    assert (back / "deep" / "er" / "file").read_bytes() == (tree / "deep" / "er" / "file").read_bytes()
    assert (back / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (back / "link").readlink() == Path("deep/er/file")
    assert cli(server, "cp", f"{session}:tree", str(back)).returncode == 0
    assert (back / "tree" / "run.sh").exists()
    assert cli(server, "exec", session, "--", "rm", "-r", "tree", "other").returncode == 0


def test_links_that_lead_out_stay_there(server: harness.Server, session: str, tmp_path: Path) -> None:
    script = "mkdir -p bad && ln -sf /etc/passwd bad/out && ln -sf ../../.. bad/up && echo x > bad/file"
    assert cli(server, "exec", session, "--", "sh", "-c", script).returncode == 0
    done = cli(server, "cp", f"{session}:bad", str(tmp_path / "bad"))
    assert done.returncode == 0
    assert sorted(done.stderr.rstrip().replace(b",", b"").split()[-2:]) == [b"out", b"up"]
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["file"]


def test_what_is_not_there_leaves_nothing(server: harness.Server, session: str, tmp_path: Path) -> None:
    for source, target, code in (
        (f"{session}:nothing", str(tmp_path / "x"), 1),
        (f"{session}:nothing", "-", 1),
        ("nosession:file", str(tmp_path / "x"), 1),
        (str(tmp_path / "nothing"), f"{session}:", 2),
        (f"{session}:.", "-", 2),
    ):
        done = cli(server, "cp", source, target)
        assert done.returncode == code, (source, target, done)
        assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_large_file_shows_how_far_it_is(server: harness.Server, session: str, tmp_path: Path) -> None:
    big, back = tmp_path / "big", tmp_path / "back"
    with big.open("wb") as file:
        file.truncate(24 << 20)
    for argv in ((str(big), f"{session}:big"), (f"{session}:big", str(back))):
        with at_terminal([*harness.CLI, "cp", *argv], server.env({"TERM": "xterm-256color"})) as me:
            me.sees(r"24\.0(/24\.0)? MiB")
            assert me.exit_code() == 0
    assert back.stat().st_size == 24 << 20
    assert cli(server, "cp", f"{session}:big", str(back)).stderr == b""  # not in a terminal
    assert cli(server, "exec", session, "--", "rm", "big").returncode == 0
