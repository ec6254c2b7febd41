"""Templates, sessions, pools and failures on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentcube.cli import inputs
from tests.integration.cli.conftest import Cli
from tests.integration.sdk.wire_server import Answer, WireServer, of, problem

TWO = """
kind: AgentRuntime
metadata: {name: parrot}
spec: {}
---
kind: CodeInterpreter
metadata: {name: small, namespace: team}
---
"""


def _make(cli: Cli, *options: str) -> str:
    done = cli("session", "create", *options)
    assert done.code == 0, done.error
    return done.text.strip()


def test_templates_are_applied_shown_and_deleted(cli: Cli, server: WireServer, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(TWO)
    assert (
        cli("apply", "-f", str(file)).text
        == "AgentRuntime default/parrot created\nCodeInterpreter team/small created\n"
    )
    assert cli("apply", "-f", "-", stdin=TWO.encode()).text.count("configured") == 2
    assert server.seen[-2].json == {"kind": "AgentRuntime", "metadata": {"name": "parrot"}, "spec": {}}
    server.templates["AgentRuntime", "default", "parrot"]["metadata"]["namespace"] = "default"
    shown = cli("get", "agent-runtimes").text.splitlines()
    assert [line.split() for line in shown] == [
        ["KIND", "NAMESPACE", "NAME"],
        ["AgentRuntime", "default", "parrot"],
    ]
    assert (
        json.loads(cli("get", "codeinterpreter", "small", "-n", "team", "-o", "json").out)["metadata"]["name"]
        == "small"
    )
    assert json.loads(cli("get", "code-interpreters", "-o", "json").out) == []
    assert cli("delete", "agent-runtime", "parrot").code == 0
    done = cli("get", "AgentRuntime", "parrot")
    assert (done.code, "default/parrot" in done.error) == (1, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "no valid YAML"),
        ("", "no manifest"),
        ("- 1", "document 1"),
        ("kind: Pod\nmetadata: {name: x}", "Pod"),
        (TWO + "kind: AgentRuntime", "document 3: the manifest of kind AgentRuntime has no metadata.name"),
        ("kind: !!python/object:os.system x", "no valid YAML"),
        ("a: &a [*a]", "kind"),
        ("a: 1\nb: [1,\nc: }", "standard input, line 3, column 4: no valid YAML: expected"),
        ("kind: CodeInterpreter\nmetadata: {name: 5}", "metadata.name that is no text: 5"),
        ("[" * 5000, ""),
        ("x" * (inputs.MANIFEST_BYTES_MAX + 1), "over 1 MiB"),
    ],
)
def test_bad_manifests_are_refused_before_anything_is_sent(
    cli: Cli, server: WireServer, text: str, says: str
) -> None:
    done = cli("apply", "-f", "-", stdin=text.encode())
    assert done.code == 2
    assert says in done.error
    assert "standard input" in done.error
    assert done.err.count(b"\n") == 1
    assert server.seen == []


def test_what_looks_like_a_date_is_a_text(cli: Cli, server: WireServer) -> None:
    text = "kind: CodeInterpreter\nmetadata: {name: x, labels: {since: 2026-01-02}}\nspec: {}\n"
    assert cli("apply", "-f", "-", stdin=text.encode()).code == 0
    assert server.seen[-1].json["metadata"]["labels"] == {"since": "2026-01-02"}


def test_manifests_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    for path, says in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin", "UTF-8"),
    ):
        done = cli("apply", "-f", str(path))
        assert (done.code, says in done.error, str(path) in done.error) == (2, True, True)


def test_a_session_from_creation_to_deletion(cli: Cli, server: WireServer) -> None:
    id = _make(
        cli,
        "parrot",
        "--kind",
        "AgentRuntime",
        "--ttl",
        "1h30m",
        "--idle-timeout",
        "90",
        "-m",
        "a=b=c",
        "-e",
        "X=",
    )
    asked = server.seen[-1].json
    assert (asked["ttl"], asked["idle_timeout"], asked["metadata"], asked["env"]) == (
        5400,
        90,
        {"a": "b=c"},
        {"X": ""},
    )
    other = json.loads(cli("session", "create", "-o", "json").out)["id"]
    listed = cli("session", "list").text
    assert id in listed
    assert other in listed
    assert [
        s["id"] for s in json.loads(cli("session", "list", "--kind", "AgentRuntime", "-o", "json").out)
    ] == [id]
    assert cli("get", "sessions", id).text.splitlines()[1].startswith(id)
    assert json.loads(cli("get", "session", id, "-o", "json").out)["id"] == id
    assert ["metadata.a", "b=c"] in [line.split() for line in cli("session", "show", id).text.splitlines()]
    assert json.loads(cli("session", "show", id, "-o", "json").out)["phase"] == "Ready"
    assert cli("session", "delete", id, other).code == 0
    assert cli("delete", "session", id).code == 1
    assert cli("session", "show", id).code == 1


def test_a_session_that_failed_is_an_error(cli: Cli, server: WireServer) -> None:
    failed = {"id": "s-1", "phase": "Failed", "reason": "start_failed", "message": "exit code 9"}
    server.script("POST", "/v1/sessions", of(failed, 201))
    done = cli("session", "create")
    assert (done.code, done.out) == (1, b"")
    assert "exit code 9" in done.error


def test_pools(cli: Cli) -> None:
    assert cli("get", "pools").text.splitlines()[1].split()[2:8] == [
        "my-interpreter",
        "2",
        "1",
        "1",
        "7",
        "3",
    ]
    missing = cli("get", "pools", "none", "-o", "json")
    assert (missing.code, missing.out) == (1, b"")
    assert "'none'" in missing.error


def test_logs_keep_the_streams_apart(cli: Cli, server: WireServer) -> None:
    id = _make(cli)
    done = cli("logs", id, "--tail-bytes", "5")
    assert (done.out, done.err) == (b"stdout 5", b"stderr 5")
    assert cli("logs", id, "--stream", "stderr").err == b"stderr "
    server.script("GET", ".*/logs", problem(404, "no_command", "this session runs no command"))
    done = cli("logs", id)
    assert (done.code, "runs no command" in done.error) == (1, True)


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate"],
        ["run"],
        ["run", "x", "-f", "y"],
        ["run", "x", "--timeout", "5 parsecs"],
        ["run", "x", "--timeout", "0"],
        ["run", "x", "-e", "novalue"],
        ["run", "x", "--language", "cobol"],
        ["exec", "s-1"],
        ["exec"],
        ["get", "pods"],
        ["delete", "pools", "x"],
        ["session", "list", "-o", "xml"],
        ["session", "create", "--ttl", "-5s"],
        ["session", "create", "-m", "=v"],
        ["session", "create", "--kind", ""],
        ["session", "show", ""],
        ["logs", "s-1", "--stream", "all"],
        ["logs", "s-1", "--tail-bytes", "-1"],
        ["up", "--port", "70000"],
        ["--url", "nonsense", "session", "list"],
        ["session"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_exit_code_2(cli: Cli, server: WireServer, argv: list[str]) -> None:
    server.script("POST", "/v1/sessions", problem(400, "invalid", "/kind: unknown"))
    done = cli(*argv)
    assert done.code == 2
    assert done.out == b""
    assert done.err.startswith(b"agentcube: ")
    assert done.err.count(b"\n") == 1


def test_a_wrong_option_names_its_values_and_the_help_that_has_them(cli: Cli) -> None:
    error = cli("run", "x", "--language", "cobol").error
    assert "'cobol' is not one of 'python', 'bash'. (see `agentcube run --help`)" in error
    assert "Value error" not in error


def test_no_command_shows_the_help(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert "Commands:" in done.error
    assert "Commands:" in cli("--help").text
    assert cli("-h").code == 0


def test_no_server_says_what_to_do(program: Cli) -> None:
    for env, says in (
        ({"AGENTCUBE_URL": ""}, "agentcube up"),
        ({"AGENTCUBE_URL": "http://127.0.0.1:9"}, "is `agentcube up` running?"),
    ):
        done = program("session", "list", env=env)
        assert (done.code, says in done.error, done.err.count(b"\n")) == (2, True, 1)


def test_options_before_the_command_win(
    cli: Cli, server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "right"
    monkeypatch.setenv("AGENTCUBE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AGENTCUBE_API_KEY", "wrong")
    assert cli("--url", server.url, "--api-key", "right", "session", "list").code == 0
    done = cli("--url", server.url, "session", "list")
    assert (done.code, "AGENTCUBE_API_KEY" in done.error) == (1, True)


def test_text_of_others_cannot_drive_the_terminal(cli: Cli, server: WireServer) -> None:
    server.script("GET", "/v1/sessions/s-1", problem(404, "session_not_found", "no\x1b[2J\nsession"))
    assert cli("session", "show", "s-1").err == b"agentcube: get session s-1: no [2J session\n"
    id = _make(cli, "-m", "k=\x1b]0;title\x07")
    assert "\x1b" not in cli("session", "show", id).text


def test_a_server_that_answers_nonsense_is_no_traceback(cli: Cli, server: WireServer) -> None:
    server.script("GET", "/v1/sessions", Answer(200, b"<html>"), Answer(302, b"", {"location": "/login"}))
    for says in ("no JSON", "redirects to '/login'"):
        done = cli("session", "list")
        assert (done.code, says in done.error, done.err.count(b"\n")) == (1, True, 1)


def test_a_bug_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("agentcube.cli.resources.read_text", broken)
    done = cli("apply", "-f", "-")
    assert (done.code, done.error) == (
        1,
        "agentcube: internal error: KeyError: 'oops' (AGENTCUBE_DEBUG=1 shows where)\n",
    )
    monkeypatch.setenv("AGENTCUBE_DEBUG", "1")
    with pytest.raises(KeyError):
        cli("apply", "-f", "-")
