from datetime import timedelta

import pytest
from pydantic import ValidationError

from agentcube.wire.bodies import CompatCreate, CreateSession, PatchSession
from agentcube.wire.problems import FieldProblem, InvalidFields, pointer


@pytest.mark.parametrize(("given", "seconds"), [(60, 60), (1.5, 1.5), ("1h30m", 5400), ("300ms", 0.3)])
def test_durations_are_seconds_or_go_style(given, seconds) -> None:
    assert CreateSession(name="a", ttl=given).ttl == timedelta(seconds=seconds)


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), 10**12, "1d", "", [], "-5s", False])
def test_what_is_no_duration_is_refused(given) -> None:
    with pytest.raises(ValidationError):
        CreateSession(name="a", ttl=given)


@pytest.mark.parametrize("name", ["a", "a-b", "0", "x" * 63])
def test_dns_labels(name) -> None:
    assert CreateSession(name=name).name == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.b", "x" * 64, "ä", "a\n"])
def test_what_is_no_dns_label_is_refused(name) -> None:
    with pytest.raises(ValidationError, match="DNS label"):
        CreateSession(name=name)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0"}, {"A": "x" * 70_000}, {"1A": "x"}])
def test_impossible_environments_are_refused(env) -> None:
    with pytest.raises(ValidationError):
        CreateSession(name="a", env=env)


def test_null_in_a_patch_is_told_from_absence() -> None:
    assert "suspend_after" in PatchSession.model_validate({"suspend_after": None}).model_fields_set
    assert "suspend_after" not in PatchSession.model_validate({}).model_fields_set


def test_pointers_are_escaped() -> None:
    assert pointer(["metadata", "a/b~c", 0]) == "/metadata/a~1b~0c/0"


def test_many_wrong_fields_are_bounded() -> None:
    error = InvalidFields(FieldProblem(f"/{n}", "no") for n in range(1000))
    assert len(error.fields) == 50
    assert len(error.detail) < 200


@pytest.mark.parametrize(
    "fields",
    [{"metadata": {"a": "\ud800"}}, {"metadata": {"\udfff": "a"}}, {"env": {"A": "x\ud83d"}}],
)
def test_text_that_no_answer_could_repeat_is_refused(fields) -> None:
    with pytest.raises(ValidationError, match="surrogate"):
        CreateSession(name="a", **fields)
    if "metadata" in fields:
        with pytest.raises(ValidationError, match="surrogate"):
            PatchSession(**fields)
        with pytest.raises(ValidationError, match="surrogate"):
            CompatCreate(name="a", namespace="default", **fields)
