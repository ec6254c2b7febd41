"""Python environments for sandboxes: built once, whole or not at all."""

import os
import re
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentcube.drivers.local import venvs
from agentcube.drivers.local.environments import DEFAULT_REQUIREMENTS, MOUNTED_AT, Environments
from agentcube.errors import DriverFailed, Invalid, NotFound, StartFailed


def wheel(folder: Path, version: str = "1.0") -> Path:
    """A package `tiny` with a module and a script."""
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny-{version}-py3-none-any.whl"
    info = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny.py", f"version = {version!r}\ndef main():\n    print(version)\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", "[console_scripts]\ntiny = tiny:main\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def requirements(folder: Path, version: str = "1.0") -> Path:
    name = wheel(folder, version).name
    file = folder / "requirements.txt"
    file.write_text(f"--no-index\n# ours\n./{name}\n")
    return file


def test_a_build_that_is_given_up_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """However long its programs would take, and the programs that those started."""
    project = tmp_path / "slow"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
    )
    (project / "slow.py").write_text(
        "import subprocess\ndef get_requires_for_build_wheel(*_):\n"
        f"    open({str(tmp_path / 'begun')!r}, 'w').close()\n    subprocess.run(['sleep', '987'])\n"
    )
    file = tmp_path / "requirements.txt"
    file.write_text(f"--no-index\n{project}\n")
    environments = Environments(tmp_path / "envs")
    waiting = Environments(tmp_path / "envs")  # as another process would
    with ThreadPoolExecutor() as pool:
        building = pool.submit(environments.create, "slow", file)
        while not (tmp_path / "begun").exists():
            assert not building.done(), building.exception()
        said = threading.Event()
        queued = pool.submit(waiting.create, "slow", file, lambda line: said.set())
        assert said.wait(20)
        waiting.give_up()
        with pytest.raises(StartFailed, match="given up"):
            queued.result(20)
        environments.give_up()
        with pytest.raises(StartFailed, match="given up"):
            building.result(20)
    assert [p.name for p in (tmp_path / "envs").iterdir() if not p.name.endswith(".lock")] == []
    with pytest.raises(StartFailed, match="given up"):
        environments.create("slow", file)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DriverFailed, match=f"environment default: .*{tmp_path}/file"):
        Environments(tmp_path / "file" / "envs").ensure("default")


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "envs")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One environment `tiny`, built under a strict umask."""
    base = tmp_path_factory.mktemp("built")
    before = os.umask(0o077)
    try:
        return Environments(base / "envs").create("tiny", requirements(base / "wheels"))
    finally:
        os.umask(before)


def test_what_was_required_can_be_imported(built: Path) -> None:
    code = "import tiny, sys; print(tiny.version, sys.prefix != sys.base_prefix)"
    done = subprocess.run([built / "bin/python3", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "True"]


def test_scripts_name_the_place_where_it_is_mounted(built: Path) -> None:
    assert (built / "bin/tiny").read_text().splitlines()[0] == f"#!{MOUNTED_AT}/bin/python3"
    for path in [*(built / "bin").iterdir(), built / "pyvenv.cfg"]:
        if not path.is_symlink():
            assert str(built.parent).encode() not in path.read_bytes(), path.name


def test_its_interpreter_is_named_without_detours(built: Path) -> None:
    real = os.path.realpath(built / "bin/python3")
    links = {os.readlink(path) for path in (built / "bin").iterdir() if path.is_symlink()}
    assert real in links
    assert {link for link in links if os.path.isabs(link)} == {real}
    assert f"home = {os.path.dirname(real)}\n" in (built / "pyvenv.cfg").read_text()


def test_it_is_compiled_and_readable_by_everybody(built: Path) -> None:
    assert list(built.glob("lib/python3*/site-packages/__pycache__/tiny.*.pyc"))
    for folder, _, files in os.walk(built):
        assert os.stat(folder).st_mode & 0o005 == 0o005, folder
        for name in files:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o004, name


def test_nothing_of_the_build_is_left(built: Path) -> None:
    names = sorted(path.name for path in built.parent.iterdir() if not path.name.endswith(".lock"))
    assert names == [built.name, "tiny.json"]


def test_a_built_environment_is_found_and_not_built_again(built: Path) -> None:
    said: list[str] = []
    environments = Environments(built.parent)
    assert environments.ensure("tiny", said.append) == built
    assert environments.find("tiny") == environments.path("tiny") == built
    assert said == []


def test_the_list_has_the_default_and_those_created(built: Path) -> None:
    listed = {env.name: env for env in Environments(built.parent).list()}
    assert set(listed) == {"default", "tiny"}
    assert listed["default"].requirements == DEFAULT_REQUIREMENTS
    assert listed["default"].path is None
    assert listed["tiny"].path == built


def test_new_requirements_make_a_new_one_and_leave_the_old(
    environments: Environments, tmp_path: Path
) -> None:
    first = environments.create("tiny", requirements(tmp_path / "wheels"))
    second = environments.create("tiny", requirements(tmp_path / "wheels", "2.0"))
    assert first != second
    assert first.is_dir()
    assert environments.path("tiny") == second


def test_two_builders_of_the_same_wait_for_each_other(environments: Environments, tmp_path: Path) -> None:
    file = requirements(tmp_path / "wheels")
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(lambda _: environments.create("tiny", file, said.append), range(2)))
    assert len(paths) == 1
    assert said.count("making a virtual environment") == 1
    assert "another process is building this environment: waiting for it" in said


def test_what_is_preloaded_is_named_or_none(environments: Environments, tmp_path: Path) -> None:
    """And needs no other build: it is no part of what is installed."""
    file = requirements(tmp_path / "wheels")
    paths = set()
    for preload, kept in ((None, ()), (["tiny"], ("tiny",)), ([], ())):
        paths.add(environments.create("tiny", file, preload=preload))
        assert next(e.preload for e in environments.list() if e.name == "tiny") == kept
    assert len(paths) == 1


def test_the_usual_modules_are_preloaded_where_they_are_installed(
    environments: Environments, tmp_path: Path
) -> None:
    path = environments.create("tiny", requirements(tmp_path / "wheels"))
    package = next(path.glob("lib/python3*/site-packages")) / "numpy"
    package.mkdir()
    (package / "__init__.py").touch()
    assert next(e.preload for e in environments.list() if e.name == "tiny") == ("numpy",)


@pytest.mark.parametrize("module", ["no_such_module", "os; print(1)", "../tiny"])
def test_a_module_that_cannot_be_preloaded_is_named(
    environments: Environments, tmp_path: Path, module: str
) -> None:
    with pytest.raises(Invalid, match=re.escape(module)):
        environments.create("tiny", requirements(tmp_path / "wheels"), preload=[module])
    with pytest.raises(NotFound):
        environments.path("tiny")


def test_an_empty_file_makes_a_bare_environment(environments: Environments, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("\n# nothing\n")
    assert (environments.create("bare", file) / "bin/python3").exists()


def test_a_build_that_was_killed_is_cleared_away(environments: Environments, tmp_path: Path) -> None:
    path = environments.create("tiny", requirements(tmp_path / "wheels"))
    left = path.parent / f".{path.name}-abcd"
    left.mkdir()
    path.rename(left / "env")
    environments.ensure("tiny")
    assert not left.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no-such-package-of-ours==1.0", "No matching distribution found for no-such-package-of-ours"),
        ("-e ./nowhere", "nowhere"),
        ("what is this?", "Invalid requirement"),
    ],
)
def test_a_requirement_that_cannot_be_had_is_named_and_leaves_nothing(
    environments: Environments, tmp_path: Path, line: str, words: str
) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"--no-index\n{line}\n")
    with pytest.raises((Invalid, StartFailed), match=words):
        environments.create("broken", file)
    assert [p.name for p in environments.root.iterdir() if not p.name.endswith(".lock")] == []
    with pytest.raises(NotFound):
        environments.path("broken")


def test_a_broken_new_definition_keeps_the_old_one(environments: Environments, tmp_path: Path) -> None:
    path = environments.create("tiny", requirements(tmp_path / "wheels"))
    file = tmp_path / "requirements.txt"
    file.write_text("--no-index\nno-such-package-of-ours\n")
    with pytest.raises(Invalid):
        environments.create("tiny", file)
    assert environments.path("tiny") == path


@pytest.mark.parametrize("name", ["", "Upper", "-x", "a" * 64, "../x", "a_b", "a.b"])
def test_a_bad_name_is_refused(environments: Environments, tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="not a name for an environment"):
        environments.create(name, tmp_path / "x")
    with pytest.raises(Invalid, match="not a name for an environment"):
        environments.ensure(name)


def test_the_default_cannot_be_redefined(environments: Environments, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="built in"):
        environments.create("default", requirements(tmp_path / "wheels"))


def test_a_missing_or_unreadable_file_is_named(environments: Environments, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cannot read requirements file .*nowhere.txt: No such file"):
        environments.create("tiny", tmp_path / "nowhere.txt")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Invalid, match="not UTF-8"):
        environments.create("tiny", binary)


def test_a_damaged_definition_is_named(environments: Environments, tmp_path: Path) -> None:
    environments.root.mkdir()
    (environments.root / "tiny.json").write_text("{")
    with pytest.raises(Invalid, match="damaged"):
        environments.ensure("tiny")


def test_one_that_is_not_built_says_how_to_build_it(environments: Environments) -> None:
    with pytest.raises(Invalid, match="agentcube env create default"):
        environments.path("default")
    assert environments.find("default") is None


def test_no_network_says_what_to_check(environments: Environments, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("--index-url http://127.0.0.1:9/simple\nno-such-package-of-ours\n")
    with pytest.MonkeyPatch.context() as patch:
        for key in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
            patch.delenv(key, raising=False)
        patch.setenv("PIP_RETRIES", "1")
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        with pytest.raises(StartFailed, match=r"cannot reach the package index.*check the network"):
            environments.create("tiny", file)


def test_this_machine_has_what_builds_take() -> None:
    found, detail = venvs.available()
    assert found, detail


def test_environments_that_others_can_change_are_not_used(tmp_path: Path) -> None:
    root = tmp_path / "envs"
    root.mkdir()
    root.chmod(0o777)
    for use in (
        lambda: Environments(root).find("default"),
        lambda: Environments(root).ensure("default"),
        lambda: Environments(root).create("mine", requirements(tmp_path)),
    ):
        with pytest.raises(Invalid, match="can be changed by others"):
            use()
    assert os.listdir(root) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_environments_of_somebody_else_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    os.chown(tmp_path / "envs", 21042, 21042)
    with pytest.raises(Invalid, match=r"belongs to uid 21042.*sudo -H"):
        Environments(tmp_path / "envs").ensure("default")
