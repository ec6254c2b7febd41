import pytest

from agentcube.errors import BY_CODE, AgentCubeError, CapacityExhausted, SessionNotFound
from agentcube.runtime.problems import problem, problem_headers
from agentcube.wire.problems import FieldProblem, InvalidFields, Problem


def test_a_problem_has_every_field_of_the_contract() -> None:
    document = problem(
        SessionNotFound("there is no session s1", session="s1"), instance="/v1/x", request_id="r"
    )
    assert document == {
        "type": "https://agentcube.dev/problems/session-not-found",
        "title": "Session not found",
        "status": 404,
        "detail": "there is no session s1",
        "instance": "/v1/x",
        "code": "session_not_found",
        "retryable": False,
        "request_id": "r",
        "error": "there is no session s1",
        "session": "s1",
    }


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_every_error_is_a_valid_problem(kind: type[AgentCubeError]) -> None:
    error = kind() if not issubclass(kind, InvalidFields) else kind([])
    Problem.model_validate(problem(error, instance="/", request_id="r"))
    assert ("Retry-After" in problem_headers(error)) == error.retryable


def test_facts_never_replace_the_contracts_fields() -> None:
    document = problem(AgentCubeError("d", status=1, code="x"), instance="/", request_id="r")
    assert (document["status"], document["code"]) == (500, "internal")


def test_wrong_fields_are_listed() -> None:
    document = problem(InvalidFields([FieldProblem("/a", "no")]), instance="/", request_id="r")
    assert document["errors"] == [{"pointer": "/a", "message": "no"}]


@pytest.mark.parametrize(
    ("fact", "header"), [({}, "1"), ({"retry_after_s": 7.9}, "7"), ({"retry_after_s": 0}, "1")]
)
def test_the_pause_before_a_retry_is_told(fact, header) -> None:
    assert problem_headers(CapacityExhausted("full", **fact))["Retry-After"] == header
