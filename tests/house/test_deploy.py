import asyncio
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from typer.core import TyperGroup

from batchmill.api.metrics import MetricsApp
from batchmill.cli.main import app
from batchmill.settings import Settings
from batchmill.spec.states import FINAL, Status
from batchmill.store.database import SqliteDatabase
from batchmill.store.migrate import migrate
from batchmill.telemetry import Metrics
from fakeclock import FakeClock

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_TEXTS = [_ROOT / "Dockerfile", *sorted(path for path in _DEPLOY.rglob("*") if path.is_file())]
_KUBERNETES = "1.34"
_ENDING = 10.0  # seconds that a worker's end may take beside its drain
# The fields of KEDA's ScaledObject and of KubeRay's RayCluster and RayJob that are used here, by their references: no
# package that can be had from an index holds the schemas.
_FIELDS = {
    "ScaledObject": {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "fallback",
        "advanced",
        "triggers",
    },
    "RayCluster": {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "RayJob": {"clusterSelector", "submissionMode", "entrypoint"},
}


def _name(path: Path) -> str:
    return str(path.relative_to(_ROOT))


def _objects() -> Iterator[dict[str, Any]]:
    """Yield every object of Kubernetes."""
    for path in [*sorted((_DEPLOY / "kubernetes").glob("*.yaml")), _DEPLOY / "raycluster.yaml"]:
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def _pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the specification of every pod that some object makes, with a name for it."""
    for each in _objects():
        spec = each.get("spec", {})
        groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
        for group in groups:
            if "template" in group:
                yield f"{each['kind']} {each['metadata']['name']}", group["template"]["spec"]


def _compose() -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load((_DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return composed


def _dockerfile() -> str:
    return (_ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.mark.parametrize("each", [*_objects()], ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_objects_are_those_of_kubernetes(each: dict[str, Any]) -> None:
    """Each is valid by Kubernetes' published schema; of those of operators, the fields are known and the pods valid."""
    if each["kind"] in _FIELDS:
        assert set(each["spec"]) <= _FIELDS[each["kind"]]
    else:
        kubernetes_validate.validate(each, _KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "spec"), [*_pods()], ids=lambda value: value if isinstance(value, str) else "")
def test_pods_are_those_of_kubernetes(name: str, spec: dict[str, Any]) -> None:
    """Whatever makes it, each pod is one by Kubernetes' published schema."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.replace(" ", "-").lower()}, "spec": spec}
    kubernetes_validate.validate(pod, _KUBERNETES, strict=True)


def test_the_compose_file_is_one() -> None:
    """It is valid by the published schema of compose files."""
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(_compose())


@pytest.mark.parametrize("path", _TEXTS, ids=_name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """No file names a variable that Batchmill does not read."""
    named = set(re.findall(r"BATCHMILL_([A-Z_]+)", path.read_text(encoding="utf-8")))
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def _environments() -> Iterator[Mapping[str, str]]:
    """Yield the variables of each kind of process, with what the examples have for secrets."""
    example = (_DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in example if line and not line.startswith("#"))
    for service in _compose()["services"].values():
        if "batchmill" in service.get("image", ""):
            yield {
                name: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: given[found[1]], value)
                for name, value in service["environment"].items()
            }
    config = next(each["data"] for each in _objects() if each["kind"] == "ConfigMap")
    yield config | next(each["stringData"] for each in _objects() if each["kind"] == "Secret")


@pytest.mark.parametrize("environment", [*_environments()])
def test_the_settings_make_sense(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Batchmill takes them, with rows and bytes that processes can share, and with the keys that backends ask for."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.database is not None
    assert settings.blobs is not None
    assert all(backend.key_env in {None, *environment} for backend in settings.backends)


def _command_lines() -> Iterator[list[str]]:
    """Yield the arguments of every `batchmill` that a file starts or tells to start."""
    for _, spec in _pods():
        yield from (container["args"] for container in spec["containers"] if "args" in container)
    for service in _compose()["services"].values():
        if "batchmill" in service.get("image", ""):
            yield service["command"]
    for path in _TEXTS:
        text = path.read_text(encoding="utf-8")
        yield from map(
            shlex.split, re.findall(r"(?<!namespace )\bbatchmill ((?:worker|serve|keys|migrate|status) .*)", text)
        )
        yield from map(shlex.split, re.findall(r"run --rm api (.*)", text))


@pytest.mark.parametrize("words", [*_command_lines()], ids=" ".join)
def test_every_command_line_is_one(words: list[str]) -> None:
    """The command line's own parser takes it; nothing is run."""
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        name, *words = words
        assert name in command.commands
        command = command.commands[name]
    assert command.params
    command.make_context(command.name, list(words))


async def _told(folder: Path) -> str:
    """Return what `/metrics` says of an empty store."""
    clock = FakeClock()
    database = SqliteDatabase(path=folder / "rows.sqlite3", clock=clock)
    await database.write(migrate)
    said: list[bytes] = []

    async def send(message: Mapping[str, Any]) -> None:
        said.append(message.get("body", b""))

    metrics = MetricsApp(metrics=Metrics(), database=database, clock=clock)
    scope: Any = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
    await metrics(scope, asyncio.sleep, send)  # type: ignore[arg-type] # it receives nothing
    await database.close()
    return b"".join(said).decode()


async def test_the_workers_follow_metrics_that_exist(tmp_path: Path) -> None:
    """KEDA's queries name what `/metrics` tells, and every state of a batch that a worker has to move on."""
    (scaled,) = (each for each in _objects() if each["kind"] == "ScaledObject")
    queries = " ".join(trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])
    told = await _told(tmp_path)
    names = re.findall(r"batchmill_\w+", queries)
    assert names
    assert [name for name in names if not re.search(rf"^{name}[ {{]", told, re.MULTILINE)] == []
    states = re.findall(r'status=~"([^"]+)"', queries)[0].split("|")
    assert set(states) == {status.value for status in set(Status) - FINAL}
    (target,) = (each for each in _objects() if each["kind"] == "Deployment" and "worker" in each["metadata"]["name"])
    assert scaled["spec"]["scaleTargetRef"]["name"] == target["metadata"]["name"]
    assert "replicas" not in target["spec"]  # two writers of one number


def test_ports_agree() -> None:
    """The image, the probes, the services and Prometheus mean the ports that the processes listen on."""
    environment = dict(re.findall(r"(BATCHMILL_\w+)=(\S+)", _dockerfile()))
    api, metrics = str(Settings.model_fields["port"].default), environment["BATCHMILL_METRICS_PORT"]
    assert re.findall(r"^EXPOSE (.*)", _dockerfile(), re.MULTILINE) == [f"{api} {metrics}"]
    assert f"127.0.0.1:{metrics}/healthz" in _dockerfile()
    for each in _objects():
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
            assert ports.items() <= {"http": api, "metrics": metrics}.items()
            assert each["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == metrics
            probes = [probe for name, probe in container.items() if name.endswith("Probe")]
            assert {probe["httpGet"]["port"] for probe in probes} <= set(ports)
            assert {probe["httpGet"]["path"] for probe in probes} <= {"/healthz", "/readyz"}
    assert f"server api:{api} resolve;" in _compose()["configs"]["proxy"]["content"]


def _images() -> Iterator[str]:
    yield from (service["image"] for service in _compose()["services"].values())
    for _, spec in _pods():
        yield from (container["image"] for container in spec["containers"])
    for path in (_ROOT / "Dockerfile", _DEPLOY / "ray.Dockerfile"):
        yield from re.findall(r"^(?:FROM |ARG BASE=)([^$\s]+)", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("image", sorted(set(_images())))
def test_images_are_pinned(image: str) -> None:
    """Each names its version; ours is this one."""
    name, _, tag = image.partition(":")
    version = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(r"\d+\.\d+|RELEASE\.\d{4}", tag)
    assert not name.startswith("batchmill") or tag == version


@pytest.mark.parametrize(("name", "spec"), [*_pods()], ids=lambda value: value if isinstance(value, str) else "")
def test_no_service_makes_a_setting(name: str, spec: dict[str, Any]) -> None:
    """Kubernetes would set BATCHMILL_PORT=tcp://… in every pod beside a Service named batchmill: it is told not to."""
    assert name
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize(("name", "spec"), [*_pods()], ids=lambda value: value if isinstance(value, str) else "")
def test_pods_have_no_privilege(name: str, spec: dict[str, Any]) -> None:
    """Ours run as the image's user on a root that cannot be written, and outlive their drain; Ray's image is Ray's."""
    for container in spec["containers"]:
        assert set(container["resources"]) == {"requests", "limits"}
        assert "privileged" not in container.get("securityContext", {})
    if name.startswith("RayCluster"):
        return
    user = re.findall(r"^USER (\d+):(\d+)", _dockerfile(), re.MULTILINE)
    assert [(str(spec["securityContext"]["runAsUser"]), str(spec["securityContext"]["runAsGroup"]))] == user
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/data" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_worker_may_drain() -> None:
    """Neither Kubernetes nor compose kills a worker that still drains."""
    drain = Settings.model_fields["drain"].default + _ENDING
    grace = dict(_pods())["Deployment batchmill-worker"]["terminationGracePeriodSeconds"]
    assert grace > drain
    assert float(_compose()["services"]["worker"]["stop_grace_period"].removesuffix("s")) > drain


def test_the_image_is_made_of_what_there_is() -> None:
    """Its extras, its system package and what it copies exist; no secret and no root is in it."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"ARG EXTRAS=(\S+)", _dockerfile())[0].split(",")
    on_ray = re.findall(r"/tmp/source\[(.*?)\]", (_DEPLOY / "ray.Dockerfile").read_text())[0].split(",")  # noqa: S108 - its own
    assert {*extras, *on_ray} <= set(project["optional-dependencies"])
    # The environment alone switches these on, and a cluster's operator may set it for every pod.
    assert {"postgres", "bucket", "otel"} <= set(extras) & set(on_ray)
    (packages,) = re.findall(r"apt-get install [-a-z ]*? (lib\S.*?) +&&", _dockerfile())
    assert packages.split() == ["libgomp1"]
    assert "libgomp1" in (_ROOT / "README.md").read_text(encoding="utf-8")
    ignored = (_ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.*)", _dockerfile(), re.MULTILINE) for word in line.split()[:-1]
    }
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert all((_ROOT / name).exists() for name in copied)
    assert not re.search(r"(?i)^(ENV|ARG).*(password|secret|token|key)", _dockerfile(), re.MULTILINE)


def test_ray_is_one_version() -> None:
    """The nodes' image, the cluster and the command's own Ray are the same: Ray takes no other."""
    (pinned,) = re.findall(r"^ray==(\S+)", (_ROOT / "constraints.txt").read_text(), re.MULTILINE)
    (cluster,) = (each for each in _objects() if each["kind"] == "RayCluster")
    assert cluster["spec"]["rayVersion"] == pinned
    assert f"rayproject/ray:{pinned}-" in (_DEPLOY / "ray.Dockerfile").read_text(encoding="utf-8")
