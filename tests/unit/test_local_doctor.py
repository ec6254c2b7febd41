"""What the doctor says, and that it tries before it says it."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentcube.drivers.local import doctor, probes
from agentcube.drivers.local.doctor import Check, checks, missing
from agentcube.drivers.local.inside import kernel


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    return {check.name: check for check in checks()}


@pytest.mark.skipif(sys.platform != "linux", reason="nothing to try elsewhere")
class TestOnLinux:
    def test_every_refusal_names_a_remedy(self, found: dict[str, Check]) -> None:
        for check in found.values():
            assert check.ok is not False or check.remedy, check.name

    def test_every_finding_says_what_was_found(self, found: dict[str, Check]) -> None:
        for check in found.values():
            assert check.detail, check.name
            assert "\n" not in check.detail

    def test_what_sandboxes_cannot_do_without_is_marked(self, found: dict[str, Check]) -> None:
        required = {check.name for check in found.values() if check.required}
        assert required == {
            "kernel",
            "user namespaces",
            "namespaces",
            "mount calls",
            "overlay",
            "proc",
            "seccomp",
        }

    def test_optional_things_are_said_too(self, found: dict[str, Check]) -> None:
        assert {"landlock", "uid range", "cgroups", "workspace on disk", "environments", "kvm"} <= set(found)

    def test_kvm_is_not_called_working_without_a_guest(self, found: dict[str, Check]) -> None:
        assert found["kvm"].ok is None

    @pytest.mark.skipif(os.geteuid() == 0, reason="root sees every device")
    def test_an_ordinary_user_is_told_what_root_would_get(self, found: dict[str, Check]) -> None:
        assert found["workspace on disk"].ok is False
        assert "root" in found["workspace on disk"].remedy


def test_missing_lists_only_what_is_required() -> None:
    needed = Check(name="a", ok=False, detail="x", required=True)
    others = [
        Check(name="b", ok=False, detail="x"),
        Check(name="c", ok=None, detail="x", required=True),
        Check(name="d", ok=True, detail="x", required=True),
    ]
    assert missing([*others, needed]) == [needed]


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"user/max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces"),
        ({"kernel/unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        (
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"user/max_user_namespaces": "100"}, "--privileged"),
        ({}, "--privileged"),
    ],
)
def test_denied_user_namespaces_are_traced_to_the_switch(
    tmp_path: Path, switches: dict[str, str], words: str
) -> None:
    for name, value in switches.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert words in doctor.userns_remedy(tmp_path)


@pytest.mark.parametrize(
    ("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")]
)
def test_other_systems_are_sent_to_linux(platform: str, name: str) -> None:
    check = doctor.other_system(platform)
    assert check.required
    assert check.ok is False
    assert name in check.detail
    assert "AGENTCUBE_URL" in check.remedy


@pytest.mark.parametrize(
    ("release", "ok"),
    [
        ("6.18.44-fc", True),
        ("5.13.0", True),
        ("5.12.19-200.fc33", False),
        ("4.18.0-553.el8", False),
        ("6.1", True),
    ],
)
def test_old_kernels_are_named(release: str, ok: bool) -> None:
    assert doctor.kernel_check(release).ok is ok


def test_environments_that_others_can_change_are_told_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "agentcube/envs").mkdir(parents=True)
    (tmp_path / "agentcube/envs").chmod(0o777)
    check = doctor._environments()
    assert not check.ok
    assert "can be changed by others" in check.detail
    assert "XDG_CACHE_HOME" in check.remedy


@pytest.mark.parametrize("trial", [probes.mount_api, probes.overlay])
def test_a_trial_names_the_step_that_was_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trial: Callable[[], str]
) -> None:
    """Not what tidying up met because of it."""

    def refuse(*args: object) -> int:
        raise kernel.StepFailed(errno.EPERM, "mount a tmpfs")

    monkeypatch.setattr(kernel, "new_mount", refuse)
    for enters in ("unshare", "set_private"):
        monkeypatch.setattr(kernel, enters, lambda *args: None)
    monkeypatch.setattr(probes, "_enter_user_namespace", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(kernel.StepFailed, match="mount a tmpfs"):
        trial()
    assert list(tmp_path.iterdir()) == []
