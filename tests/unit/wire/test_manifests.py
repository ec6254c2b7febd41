from datetime import timedelta

import pytest

from agentcube.errors import Invalid
from agentcube.wire.manifests import load_document, parse_manifest
from agentcube.wire.problems import InvalidFields

AGENT = {
    "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
    "kind": "AgentRuntime",
    "metadata": {"name": "a", "uid": "kept", "labels": {"x": "y"}},
    "spec": {
        "targetPort": [{"pathPrefix": "/echo", "port": 8080, "protocol": "HTTP"}],
        "podTemplate": {
            "labels": {"app": "a"},
            "somethingNew": True,
            "spec": {
                "serviceAccountName": "sa",
                "containers": [{"name": "c", "image": "i", "livenessProbe": {"httpGet": {"port": 1}}}],
            },
        },
        "sessionTimeout": "15m",
        "maxSessionDuration": "8h",
    },
}


def agent(**spec) -> dict:
    return {**AGENT, "spec": {**AGENT["spec"], **spec}}


def interpreter(**spec) -> dict:
    return {"kind": "CodeInterpreter", "metadata": {"name": "a"}, "spec": {"template": {}, **spec}}


def test_what_belongs_to_kubernetes_is_kept_known_or_not() -> None:
    manifest = parse_manifest(AGENT)
    assert manifest.metadata.model_extra == {"uid": "kept"}
    assert manifest.spec.pod_template.model_extra == {"somethingNew": True}
    assert "livenessProbe" in manifest.spec.pod_template.spec.containers[0].model_extra


def test_defaults_are_those_of_the_go_system() -> None:
    spec = parse_manifest(interpreter()).spec
    assert (spec.idle_timeout, spec.ttl, spec.auth_mode) == (
        timedelta(minutes=15),
        timedelta(hours=8),
        "picod",
    )
    assert parse_manifest(interpreter(sessionTimeout=None)).spec.idle_timeout == timedelta(minutes=15)


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        (agent(sessiontimeout="15m"), "/spec/sessiontimeout"),
        (agent(sessionTimeout="15"), "/spec/sessionTimeout"),
        (agent(sessionTimeout="0s"), "/spec/sessionTimeout"),
        (agent(sessionTimeout=900), "/spec/sessionTimeout"),
        (agent(podTemplate=None), "/spec/podTemplate"),
        (agent(podTemplate={"spec": {"containers": []}}), "/spec/podTemplate/spec/containers"),
        (agent(targetPort=[{"port": 0}]), "/spec/targetPort/0/port"),
        (agent(targetPort=[{"port": 80, "protocol": "UDP"}]), "/spec/targetPort/0/protocol"),
        (agent(targetPort=[{"port": 80, "pathPrefix": "x"}]), "/spec/targetPort/0"),
        (agent(warmPool={"target": -1}), "/spec/warmPool/target"),
        (agent(warmPool={"min": 3, "max": 2}), "/spec/warmPool"),
        (agent(warmPool={"min": 1, "target": 5, "max": 2}), "/spec/warmPool"),
        (agent(warmPoolSize=2), "/spec/warmPoolSize"),
        (agent(environment="../x"), "/spec/environment"),
        (agent(isolation="total"), "/spec/isolation"),
        ({**AGENT, "metadata": {"name": "a.b"}}, "/metadata/name"),
        ({**AGENT, "metadata": {}}, "/metadata/name"),
        ({**AGENT, "extra": 1}, "/extra"),
        (interpreter(template={"image": "x", "privileged": True}), "/spec/template/privileged"),
        (
            interpreter(template={"resources": {"limits": {"cpu": [1]}}}),
            "/spec/template/resources/limits/cpu",
        ),
        (interpreter(warmPoolSize=2, warmPool={"target": 3}), "/spec"),
        (interpreter(authMode="open"), "/spec/authMode"),
    ],
)
def test_what_is_ours_is_checked_with_a_pointer(document, pointer) -> None:
    with pytest.raises(InvalidFields) as caught:
        parse_manifest(document)
    assert [f.pointer for f in caught.value.fields] == [pointer]
    assert (pointer or "body") in caught.value.detail


@pytest.mark.parametrize("kind", [None, "Pod", 1, ["AgentRuntime"]])
def test_other_kinds_are_named(kind) -> None:
    with pytest.raises(Invalid, match="AgentRuntime or CodeInterpreter"):
        parse_manifest({"kind": kind})


@pytest.mark.parametrize(
    ("pool", "sizes"),
    [({}, (0, 0, 0)), ({"target": 3}, (0, 3, 3)), ({"min": 2}, (2, 2, 2)), ({"max": 4}, (0, 0, 4))],
)
def test_pool_sizes_are_completed(pool, sizes) -> None:
    assert parse_manifest(agent(warmPool=pool)).spec.warm_pool.sizes() == sizes


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(Invalid, match="too large"):
        load_document("\n".join(lines).encode(), as_yaml=True)


@pytest.mark.parametrize("depth", [1, 40])
def test_merge_keys_are_refused_as_they_grow_by_powers(depth) -> None:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, depth + 1)]
    with pytest.raises(Invalid, match=r"line 2.*merge keys"):
        load_document("\n".join(lines).encode(), as_yaml=True)


def test_a_long_document_is_refused_before_it_is_read_to_its_end() -> None:
    text = b"a:\n" + b"- x\n" * 250_000 + b"]"  # which is no YAML: nobody came to see it
    with pytest.raises(Invalid, match="too large"):
        load_document(text, as_yaml=True)


def test_aliases_themselves_are_fine() -> None:
    assert load_document(b"a: &x {b: 1}\nc: *x", as_yaml=True) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "as_yaml", "says"),
    [
        (b"a: [", True, "line 1"),
        (b"a: 1\n\tb: 2", True, "line 2"),
        (b"\xff\xfe\x00", True, "YAML"),
        (b"a: \x00", True, "YAML"),
        (b"1: 2", True, "must be text"),
        (b"a: !!python/object:os.system {}", True, "line 1"),
        (b"a: .nan", True, "finite"),
        (b"a: !!binary aGk=", True, "bytes"),
        (b"{" * 3, False, "line 1"),
        (b"\xff", False, "UTF-8"),
        (b'{"a": NaN}', False, "finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", False, "impossible"),
        (b"null", False, "object"),
        (b"[" * 100_000, False, "nested"),
        (b'{"a": "\\ud800"}', False, "surrogate"),
        (b'{"\\udfff": 1}', False, "surrogate"),
        (b'a: "\\ud800"', True, "surrogate"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, False, "levels"),
    ],
)
def test_documents_that_cannot_be_read_are_named(text, as_yaml, says) -> None:
    with pytest.raises(Invalid, match=says):
        load_document(text, as_yaml=as_yaml)


def test_yaml_times_become_text() -> None:
    assert load_document(b"a: 2024-05-01T10:00:00Z", as_yaml=True) == {"a": "2024-05-01T10:00:00+00:00"}
