from datetime import timedelta

import pytest

from agentcube.errors import Invalid
from agentcube.manager.templates import TemplatePolicy, key_of, template_of
from agentcube.model.sandbox import HostMount, Isolation, Port, Resources
from agentcube.model.template import AuthMode, Kind, TemplateKey, WarmPool
from agentcube.wire.problems import InvalidFields

AGENT = TemplateKey(Kind.AGENT_RUNTIME, "team-a", "agent")
PYTHON = TemplateKey(Kind.CODE_INTERPRETER, "default", "py")
CONTAINER = "/spec/podTemplate/spec/containers/0"


def agent(container=None, pod=None, **spec) -> dict:
    pod_spec = {"containers": [container or {}], **(pod or {})}
    return {"spec": {"targetPort": [{"port": 8080}], "podTemplate": {"spec": pod_spec}, **spec}}


def read(document, key=AGENT, *allowed):
    return template_of(document, key, TemplatePolicy(tuple(allowed), Isolation.GVISOR))


def refused(document, key=AGENT, *allowed) -> list[str]:
    with pytest.raises(InvalidFields) as caught:
        read(document, key, *allowed)
    return [f.pointer for f in caught.value.fields]


def test_an_agent_runtime_is_read_whole(tmp_path) -> None:
    container = {
        "image": f"dir:{tmp_path}/root",
        "command": ["python3", "-u"],
        "args": ["agent.py"],
        "env": [{"name": "A", "value": "1"}, {"name": "B"}],
        "workingDir": "/srv",
        "resources": {
            "limits": {"cpu": 2, "memory": "1Gi", "ephemeral-storage": "2G", "pids": 64},
            "requests": {"cpu": "1"},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
        "livenessProbe": {},
    }
    document = agent(
        container,
        {
            "volumes": [
                {"name": "data", "hostPath": {"path": f"{tmp_path}/data"}},
                {"name": "x", "emptyDir": {}},
            ]
        },
        targetPort=[
            {"port": 8080, "pathPrefix": "/echo"},
            {"port": 9000, "name": "metrics", "passCredentials": True},
        ],
        sessionTimeout="5m",
        maxSessionDuration="1h",
        suspendAfter="90s",
        warmPool={"min": 1, "target": 2, "max": 4},
        environment="",
        isolation="gvisor",
        queue="kept",
    )
    template = read(document, AGENT, tmp_path)
    assert template.image == f"dir:{tmp_path}/root"
    assert template.command == ("python3", "-u", "agent.py")
    assert template.env == {"A": "1", "B": ""}
    assert template.working_dir == "/srv"
    assert (
        template.ports
        == template.routes
        == (Port(port=8080, path_prefix="/echo"), Port(port=9000, name="metrics", passes_credentials=True))
    )
    assert template.mounts == (HostMount(source=f"{tmp_path}/data", target="/data", read_only=True),)
    assert template.resources == Resources(
        cpu_millis=2000, memory_bytes=1 << 30, workspace_bytes=2 * 10**9, pids_max=64
    )
    assert (template.session_timeout, template.max_session_duration) == (
        timedelta(minutes=5),
        timedelta(hours=1),
    )
    assert template.suspend_after == timedelta(seconds=90)
    assert template.warm_pool == WarmPool(min=1, target=2, max=4)
    assert (template.environment, template.isolation) == ("", Isolation.GVISOR)
    assert template.manifest["kind"] == "AgentRuntime"
    assert template.manifest["metadata"] == {"name": "agent", "namespace": "team-a"}
    assert template.manifest["spec"]["queue"] == "kept"


def test_a_code_interpreter_with_picod_has_neither_command_nor_ports() -> None:
    box = {
        "image": "ghcr.io/volcano-sh/picod:v1@sha256:00",
        "command": ["picod"],
        "args": ["--workspace=/root"],
    }
    template = read({"spec": {"ports": [{"port": 8080}], "template": box, "warmPoolSize": 3}}, PYTHON)
    assert (template.image, template.command, template.ports) == ("host", (), ())
    assert template.speaks_picod
    assert template.warm_pool == WarmPool(min=0, target=3, max=3)
    assert (template.environment, template.isolation) == ("default", Isolation.NAMESPACE)


def test_a_code_interpreter_without_picod_is_a_server_of_its_own() -> None:
    box = {"command": ["serve"], "environment": [{"name": "A", "value": "1"}]}
    template = read({"spec": {"authMode": "none", "ports": [{"port": 80}], "template": box}}, PYTHON)
    assert (template.command, template.env, template.auth_mode) == (("serve",), {"A": "1"}, AuthMode.NONE)
    assert template.routes == (Port(port=80),)


def test_the_status_of_a_manifest_is_not_kept() -> None:
    assert "status" not in read({**agent(), "status": {"x": 1}}).manifest


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        (agent({"image": "python:3.11-slim"}), f"{CONTAINER}/image"),
        (agent({"image": "dir:relative"}), f"{CONTAINER}/image"),
        (agent({"image": "tar:/srv/../etc/x.tar"}), f"{CONTAINER}/image"),
        (agent({"image": "dir:/etc"}), f"{CONTAINER}/image"),
        (agent({"workingDir": "srv"}), f"{CONTAINER}/workingDir"),
        (agent({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}), f"{CONTAINER}/env/0/valueFrom"),
        (agent({"env": [{"name": "A=B", "value": ""}]}), f"{CONTAINER}/env"),
        (agent({"envFrom": [{"configMapRef": {}}]}), f"{CONTAINER}/envFrom"),
        (
            agent({"resources": {"limits": {"nvidia.com/gpu": 1}}}),
            f"{CONTAINER}/resources/limits/nvidia.com~1gpu",
        ),
        (agent({"resources": {"limits": {"memory": "-1"}}}), f"{CONTAINER}/resources/limits/memory"),
        (agent({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}), f"{CONTAINER}/volumeMounts/0/name"),
        (agent(pod={"containers": [{}, {}]}), "/spec/podTemplate/spec/containers/1"),
        (agent(pod={"initContainers": [{}]}), "/spec/podTemplate/spec/initContainers"),
        (agent(targetPort=[{"port": 443, "protocol": "HTTPS"}]), "/spec/targetPort/0/protocol"),
        (agent(targetPort=[{"port": 1}, {"port": 2, "pathPrefix": "/"}]), "/spec/targetPort/1/pathPrefix"),
        (agent(network={"egress": ["pypi.org:443"]}), "/spec/network/egress"),
        (agent(volumes=["cache"]), "/spec/volumes"),
        (agent(isolation="microvm"), "/spec/isolation"),
    ],
)
def test_what_this_machine_cannot_honour_is_refused_and_not_dropped(document, pointer) -> None:
    assert refused(document) == [pointer]


def test_everything_wrong_is_told_at_once() -> None:
    assert len(refused(agent({"image": "x/y", "workingDir": "a", "envFrom": [1]}))) == 3


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("{0}/ok", True), ("{0}/ok/deeper", True), ("{0}", False), ("{0}/okay", False), ("{0}/link", False)],
)
def test_paths_of_the_machine_only_below_allowed_directories(tmp_path, path, allowed) -> None:
    (tmp_path / "ok" / "deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "ok" / "out").symlink_to("/etc")
    document = agent({"image": "dir:" + path.format(tmp_path)})
    if allowed:
        assert read(document, AGENT, tmp_path / "ok")
    else:
        assert refused(document, AGENT, tmp_path / "ok") == [f"{CONTAINER}/image"]
    assert refused(agent({"image": f"dir:{tmp_path}/ok/out"}), AGENT, tmp_path / "ok")


def test_the_flag_that_opens_a_path_is_named() -> None:
    with pytest.raises(InvalidFields, match="--allow-host-path"):
        read(agent({"image": "dir:/srv/agent"}))
    volumes = {"volumes": [{"name": "d", "hostPath": {"path": "/srv"}}]}
    document = agent({"volumeMounts": [{"name": "d", "mountPath": "/d"}]}, volumes)
    with pytest.raises(InvalidFields, match="--allow-host-path"):
        read(document)


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({**agent(), "kind": "CodeInterpreter"}, "/kind"),
        ({**agent(), "metadata": {"name": "other"}}, "/metadata/name"),
        ({**agent(), "metadata": {"namespace": "other"}}, "/metadata/namespace"),
        ({**agent(), "metadata": []}, "/spec"),
        ({**agent(), "metadata": "x"}, "/metadata"),
    ],
)
def test_a_manifest_must_agree_with_its_address(document, pointer) -> None:
    if pointer == "/spec":
        assert read(document)  # an empty one says nothing to the contrary
    else:
        assert refused(document) == [pointer]


@pytest.mark.parametrize(("namespace", "name"), [("Default", "a"), ("default", ""), ("default", "a/b")])
def test_addresses_are_dns_labels(namespace, name) -> None:
    with pytest.raises(Invalid, match="DNS label"):
        key_of(Kind.AGENT_RUNTIME, namespace, name)
