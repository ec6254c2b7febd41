"""What a sandbox's root file system is made of."""

import io
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentcube
from agentcube.drivers.local import tarballs
from agentcube.drivers.local.environments import Environments
from agentcube.drivers.local.images import ImageRoot, resolve
from agentcube.errors import Invalid, NotFound


def host(root: Path, environment: str = "") -> ImageRoot:
    return resolve("host", environment=environment, root=root, environments=Environments(root / "envs"))


def image(name: str, root: Path) -> ImageRoot:
    return resolve(name, environment="default", root=root, environments=Environments(root / "envs"))


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    return info, data


def archive(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


class TestHost:
    def test_etc_is_ours_and_tells_nothing_of_the_machine(self, tmp_path: Path) -> None:
        etc = host(tmp_path).lower / "etc"
        assert "sandbox:x:1000:1000" in (etc / "passwd").read_text()
        assert len((etc / "passwd").read_text().splitlines()) == 3
        assert (etc / "resolv.conf").read_text() == ""
        assert (etc / "hostname").read_text() == "sandbox\n"
        for secret in (
            "shadow",
            "gshadow",
            "ssl/private",
            "ssh",
            "machine-id",
            "pip.conf",
            "environment",
            "sudoers",
        ):
            assert not os.path.lexists(etc / secret), secret

    def test_nothing_but_directories_and_links_stand_beside_etc(self, tmp_path: Path) -> None:
        lower = host(tmp_path).lower
        for folder in ("root", "run", "tmp", "workspace", "mnt", "proc", "dev", "sys", "opt/agentcube/env"):
            assert list((lower / folder).iterdir()) == []
        assert not (lower / "home").exists()

    def test_top_level_links_are_those_of_the_machine(self, tmp_path: Path) -> None:
        found = host(tmp_path)
        for name in ("bin", "lib"):
            if os.path.islink(f"/{name}"):
                assert os.readlink(found.lower / name) == os.readlink(f"/{name}")
            else:
                assert f"/{name}" in [bind.target for bind in found.binds]

    @pytest.mark.usefixtures("strict_umask")
    def test_every_user_can_read_it_whatever_the_umask(self, tmp_path: Path) -> None:
        for folder, _, files in os.walk(host(tmp_path).lower):
            assert os.stat(folder).st_mode & 0o777 == 0o755, folder
            for name in files:
                mode = os.lstat(os.path.join(folder, name)).st_mode
                assert stat.S_ISLNK(mode) or mode & 0o777 == 0o644, name

    def test_the_skeleton_is_made_once(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            roots = set(pool.map(lambda _: host(tmp_path).lower, range(8)))
        assert len(roots) == 1
        assert [p.name for p in (tmp_path / "host").iterdir()] == [roots.pop().name]

    def test_usr_and_the_base_interpreter_are_bound_at_their_own_paths(self, tmp_path: Path) -> None:
        targets = {bind.target: bind.source for bind in host(tmp_path).binds}
        assert targets["/usr"] == Path("/usr")
        prefix = Path(sys.base_prefix).resolve()
        assert prefix.is_relative_to("/usr") or targets[str(prefix)] == prefix

    def test_the_servers_own_packages_are_not_visible(self, tmp_path: Path) -> None:
        binds = host(tmp_path).binds
        ours = Path(agentcube.__file__).resolve().parent
        covers = [bind for bind in binds if bind.source == tmp_path / "empty"]
        for place in (ours, Path(sys.prefix).resolve() if sys.prefix != sys.base_prefix else ours):
            seen = [b for b in binds if b not in covers and place.is_relative_to(b.target)]
            assert not seen or any(place.is_relative_to(cover.target) for cover in covers)
        assert list((tmp_path / "empty").iterdir()) == []

    def test_packages_of_an_interpreter_outside_usr_are_covered(self, tmp_path: Path) -> None:
        prefix = Path(sys.base_prefix).resolve()
        if prefix.is_relative_to("/usr"):
            pytest.skip("this Python is the system's")
        site = f"{prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        assert site in [bind.target for bind in host(tmp_path).binds if bind.source == tmp_path / "empty"]

    def test_binds_come_outermost_first(self, tmp_path: Path) -> None:
        targets = [Path(bind.target) for bind in host(tmp_path).binds]
        for index, target in enumerate(targets):
            assert not any(earlier.is_relative_to(target) for earlier in targets[:index])

    def test_an_environment_nobody_created_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"'science'.*agentcube env create science"):
            host(tmp_path, environment="science")

    def test_without_an_environment_the_path_is_the_systems(self, tmp_path: Path) -> None:
        assert "agentcube" not in host(tmp_path).path


class TestDirectory:
    def test_a_directory_is_used_as_it_is(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir(mode=0o755)
        assert image(f"dir:{root}", tmp_path) == ImageRoot(root)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("dir:relative", "absolute"),
            ("dir:/a/../b", "absolute"),
            ("dir:", "absolute"),
            ("dir:/", "use 'host'"),
            ("dir:/no/such/place", "No such file or directory"),
            ("dir:/etc/passwd", "write 'tar:/etc/passwd'"),
            ("python:3.12", "use 'host', 'dir:"),
            ("", "use 'host', 'dir:"),
            ("tar:relative.tar", "absolute"),
            ("tar:/no/such.tar", "No such file or directory"),
            ("tar:/etc", "write 'dir:/etc'"),
        ],
    )
    def test_an_image_that_cannot_be_says_what_to_do(self, tmp_path: Path, name: str, words: str) -> None:
        with pytest.raises(Invalid, match=words):
            image(name, tmp_path)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root's sandboxes have other user ids")
    def test_a_directory_that_sandboxes_cannot_read_is_refused(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir(mode=0o700)
        with pytest.raises(Invalid, match="chmod -R o\\+rX"):
            image(f"dir:{root}", tmp_path)


class TestTarball:
    @pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
    def test_it_is_unpacked_once_and_shared(self, tmp_path: Path, compression: str) -> None:
        path = archive(tmp_path / "a.tar", entry("etc/motd", data=b"hello"), mode=f"w:{compression}")
        with ThreadPoolExecutor(4) as pool:
            roots = {found.lower for found in pool.map(lambda _: image(f"tar:{path}", tmp_path), range(8))}
        (root,) = roots
        assert (root / "etc/motd").read_text() == "hello"

    def test_an_archive_must_lie_where_templates_may_look_whatever_links_say(self, tmp_path: Path) -> None:
        allowed, private = tmp_path / "allowed", tmp_path / "private"
        allowed.mkdir(), private.mkdir()
        inside = archive(allowed / "a.tar", entry("file", data=b"open"))
        secret = archive(private / "b.tar", entry("file", data=b"secret"))
        (allowed / "link.tar").symlink_to(secret)
        within = [os.path.realpath(allowed)]
        root = tarballs.unpacked(inside, tmp_path / "tar", within=within)
        assert (root / "file").read_bytes() == b"open"
        for path in (secret, allowed / "link.tar", allowed / "../private/b.tar"):
            with pytest.raises(Invalid, match="leads out of the directories"):
                tarballs.unpacked(path, tmp_path / "tar", within=within)
        with pytest.raises(Invalid, match="leads out of the directories"):
            resolve(
                f"tar:{allowed}/link.tar",
                environment="",
                root=tmp_path,
                environments=Environments(tmp_path / "envs"),
                host_paths=within,
            )

    def test_a_pipe_is_no_archive_and_nobody_waits_for_it(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.tar")
        with pytest.raises(Invalid, match="not a file"):
            tarballs.unpacked(tmp_path / "pipe.tar", tmp_path / "tar")

    def test_a_changed_archive_is_another_image(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "a.tar", entry("one", data=b"1"))
        first = image(f"tar:{path}", tmp_path).lower
        archive(path, entry("one", data=b"1"), entry("two", data=b"2" * 20_000))
        second = image(f"tar:{path}", tmp_path).lower
        assert first != second
        assert not (first / "two").exists()

    @pytest.mark.parametrize(
        "entries",
        [
            [entry("../escape", data=b"x")],
            [entry("a/../../escape", data=b"x")],
            [entry("hard", tarfile.LNKTYPE, link="../../outside")],
        ],
    )
    def test_an_archive_that_leaves_its_directory_is_refused(
        self, tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
    ) -> None:
        (tmp_path / "outside").write_text("host's own")
        path = archive(tmp_path / "a.tar", *entries)
        with pytest.raises(Invalid, match="refused"):
            image(f"tar:{path}", tmp_path)
        assert not list(tmp_path.rglob("escape"))
        assert [p for p in (tmp_path / "tar").iterdir() if p.is_dir()] == []

    @pytest.mark.parametrize("up", ["..", "../../..", "/"])
    def test_links_resolve_inside_the_image(self, tmp_path: Path, up: str) -> None:
        path = archive(
            tmp_path / "a.tar", entry("a/link", tarfile.SYMTYPE, link=up), entry("a/link/escape", data=b"x")
        )
        root = image(f"tar:{path}", tmp_path).lower
        assert list(tmp_path.rglob("escape")) == [root / "escape"]

    def test_a_hard_link_shares_its_file(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "a.tar", entry("a", data=b"x"), entry("d/b", tarfile.LNKTYPE, link="a"))
        root = image(f"tar:{path}", tmp_path).lower
        assert (root / "a").samefile(root / "d/b")

    def test_the_last_entry_of_a_name_counts(self, tmp_path: Path) -> None:
        path = archive(
            tmp_path / "a.tar",
            entry("a", tarfile.SYMTYPE, link="b"),
            entry("b", data=b"other"),
            entry("a", data=b"new"),
        )
        root = image(f"tar:{path}", tmp_path).lower
        assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"new", b"other")

    def test_a_link_to_the_machine_is_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        path = archive(
            tmp_path / "a.tar",
            entry("link", tarfile.SYMTYPE, link=str(outside)),
            entry("link/escape", data=b"x"),
        )
        with pytest.raises(Invalid, match="refused"):
            image(f"tar:{path}", tmp_path)
        assert list(outside.iterdir()) == []

    def test_absolute_links_and_names_belong_to_the_image(self, tmp_path: Path) -> None:
        path = archive(
            tmp_path / "a.tar", entry("/bin/sh", data=b"#!"), entry("sh", tarfile.SYMTYPE, link="/bin/sh")
        )
        root = image(f"tar:{path}", tmp_path).lower
        assert os.readlink(root / "sh") == "/bin/sh"
        assert (root / "bin/sh").read_bytes() == b"#!"

    def test_devices_are_left_out_and_nobody_is_setuid(self, tmp_path: Path) -> None:
        path = archive(
            tmp_path / "a.tar",
            entry("dev/null", tarfile.CHRTYPE),
            entry("pipe", tarfile.FIFOTYPE),
            entry("su", mode=0o4755, data=b"x"),
            entry("secret", mode=0o600, data=b"x"),
            entry("closed", tarfile.DIRTYPE, mode=0o700),
        )
        root = image(f"tar:{path}", tmp_path).lower
        assert not (root / "dev/null").exists()
        assert not (root / "pipe").exists()
        modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("su", "secret", "closed")}
        assert modes == {"su": 0o755, "secret": 0o644, "closed": 0o755}

    @pytest.mark.parametrize("data", [b"", b"not an archive", b"\x1f\x8b\x08\x00damaged"])
    def test_a_damaged_archive_is_named_and_leaves_nothing(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "a.tar.gz"
        path.write_bytes(data)
        with pytest.raises(Invalid, match=f"{path}.*(damaged|empty)"):
            image(f"tar:{path}", tmp_path)
        assert [p for p in (tmp_path / "tar").iterdir() if p.is_dir()] == []

    def test_a_truncated_archive_is_damaged(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "a.tar.gz", entry("big", data=os.urandom(100_000)), mode="w:gz")
        path.write_bytes(path.read_bytes()[:50_000])
        with pytest.raises(Invalid, match="damaged"):
            image(f"tar:{path}", tmp_path)
        assert [p for p in (tmp_path / "tar").iterdir() if p.is_dir()] == []

    @pytest.mark.parametrize("bounds", [{"bytes_max": 100}, {"entries_max": 1}])
    def test_an_archive_over_the_bounds_is_refused(self, tmp_path: Path, bounds: dict[str, int]) -> None:
        path = archive(tmp_path / "a.tar", entry("a", data=b"x" * 90), entry("b", data=b"x" * 90))
        with pytest.raises(Invalid, match="larger than"):
            tarballs.unpacked(path, tmp_path / "tar", **bounds)

    @given(
        changes=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=12),
        cut=st.integers(0, 8192),
        compressed=st.booleans(),
    )
    @settings(max_examples=150, deadline=None)
    def test_whatever_the_bytes_the_answer_is_a_root_or_a_clear_no(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        changes: list[tuple[int, int]],
        cut: int,
        compressed: bool,
    ) -> None:
        base = tmp_path_factory.mktemp("fuzz")
        path = archive(
            base / "a.tar",
            entry("bin/sh", data=b"#!"),
            entry("link", tarfile.SYMTYPE, link="bin"),
            entry("hard", tarfile.LNKTYPE, link="bin/sh"),
            entry("link/x", data=b"x" * 600),
            mode="w:gz" if compressed else "w",
        )
        content = bytearray(path.read_bytes()[: max(cut, 1)])
        for place, value in changes:
            content[place % len(content)] = value
        path.write_bytes(content)
        before = sorted(p.name for p in base.iterdir())
        try:
            root = tarballs.unpacked(path, base / "tar", bytes_max=1 << 20, entries_max=100)
        except Invalid:
            root = None
        assert [p for p in (base / "tar").iterdir() if p.is_dir()] == ([root] if root else [])
        assert sorted(p.name for p in base.iterdir()) == sorted([*before, "tar"])
