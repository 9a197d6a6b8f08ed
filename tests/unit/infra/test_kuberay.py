"""The files of infra/kuberay: their parts fit each other, the pins and the code. None is applied to a cluster."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.environment_variables
import pytest
import yaml
from ray.scripts.scripts import drain_node
from ray.serve.schema import ServeDeploySchema
from serve.app import build_app
from serve.schemas import Settings

from glioray.engine.loop import _LEAVING_EVERY_S
from pins import PINS, mlflow_server_flags

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "infra" / "kuberay"
DOCUMENTS = [
    (path.relative_to(FOLDER).as_posix(), document)
    for path in sorted(FOLDER.rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
# Fields of KubeRay's kinds: a type, the values of an enumeration, or the level that a field's own value has.
KUBERAY = json.loads(Path(__file__).with_name("kuberay_fields.json").read_text())
_TYPES: dict[str, type] = {"bool": bool, "string": str, "int32": int}
JOBS = {name: document for name, document in DOCUMENTS if document["kind"] == "RayJob"}
SHARED = {name: document for name, document in JOBS.items() if name.startswith("jobs/")}
# Jobs whose --dry-run needs neither data nor a model.
RESOLVED = {"train_unet", "tune_unet", "train_gan", "tune_gan", "compare", "compare_gan"}


def _clusters() -> dict[str, dict[str, Any]]:
    """Specs of Ray clusters by the kind that holds them."""
    keys = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    found = {}
    for _, document in DOCUMENTS:
        spec = document.get("spec", {})
        if document["kind"] in keys:
            key = keys[document["kind"]]
            spec = spec if key is None else spec.get(key)
            if spec is not None:
                found[document["kind"]] = spec
    return found


def _pods() -> Iterator[dict[str, Any]]:
    for _, document in DOCUMENTS:
        if document["kind"] == "Deployment":
            yield document["spec"]["template"]["spec"]
    for spec in _clusters().values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]


def _values(node: Any, key: str) -> Iterator[Any]:
    """What stands under a key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from _values(item, key)


def test_the_kinds_are_there() -> None:
    kinds = {document["kind"] for _, document in DOCUMENTS}
    assert {"RayCluster", "RayJob", "RayService", "Deployment", "Service", "NetworkPolicy"} <= kinds
    assert all({"apiVersion", "kind", "metadata", "spec"} <= document.keys() for _, document in DOCUMENTS)


def _faults(level: str, value: Any, path: str) -> Iterator[str]:
    """What in a value KubeRay would not take, by the fields of its API; what it leaves to Kubernetes is not looked at."""
    if not isinstance(value, dict):
        yield f"{path} is no object"
        return
    fields = KUBERAY["levels"][level]
    yield from (f"{path} lacks {name}" for name in set(KUBERAY["required"].get(level, ())) - value.keys())
    for name, item in value.items():
        place, kind = f"{path}.{name}", fields.get(name, "")
        element = kind.removeprefix("[]")
        if not kind:
            yield f"{place} does not exist"
        elif kind.startswith("enum:"):
            if item not in kind.removeprefix("enum:").split("|"):
                yield f"{place} is {item!r}; KubeRay takes {kind}"
        elif element in KUBERAY["levels"]:
            for number, one in enumerate(item if kind != element else [item]):
                yield from _faults(element, one, f"{place}[{number}]" if kind != element else place)
        elif kind in _TYPES and (not isinstance(item, _TYPES[kind]) or (kind != "bool" and item is True)):
            yield f"{place} is {item!r}; KubeRay takes {kind}"
        elif kind == "map[string]string" and not all(isinstance(one, str) for one in item.values()):
            yield f"{place} has values that are not strings"


def test_fields_of_kuberay_s_kinds_are_those_of_its_api() -> None:
    found = [
        fault
        for name, document in DOCUMENTS
        if document["apiVersion"].startswith("ray.io/")
        for fault in _faults(document["kind"], document, name)
    ]
    assert found == []
    # And that the check sees faults.
    (cluster,) = (document for _, document in DOCUMENTS if document["kind"] == "RayCluster")
    for path, value in (
        ("enableInTreeAutoscaler", True),
        ("rayVersion", 2.6),
        ("autoscalerOptions", {"version": "v3"}),
        ("workerGroupSpecs", [{"groupName": "gpu"}]),
        ("headGroupSpec", {"template": {}, "rayStartParams": {"num-cpus": 0}}),
    ):
        spoilt = {**cluster, "spec": {**cluster["spec"], path: value}}
        assert list(_faults("RayCluster", spoilt, "it")), path


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_a_head_that_names_ports_names_those_that_kuberay_asks(kind: str) -> None:
    """Of a head without any, KubeRay adds them; it waits for ever for the port of a dashboard that is not named."""
    (container,) = _clusters()[kind]["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports.items() >= {"gcs-server": 6379, "dashboard": 8265}.items()
    assert kind != "RayService" or ports["serve"] == 8000


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_a_worker_s_pod_tells_ray_before_it_goes(kind: str) -> None:
    options = {flag for option in drain_node.params for flag in option.opts}
    for group in _clusters()[kind]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        _, _, script = container["lifecycle"]["preStop"]["exec"]["command"]
        drain, pause = script.split("; ")
        words = shlex.split(drain)
        assert words[:2] == ["ray", "drain-node"]
        assert options >= {word for word in words if word.startswith("--")}
        notice_s = int(words[words.index("--deadline-remaining-seconds") + 1])
        assert pause == f"sleep {notice_s}"
        # Enough for the notice to arrive, and for saves every ten seconds.
        assert 3 * _LEAVING_EVERY_S <= notice_s < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_a_cluster_scales_asks_for_a_token_and_runs_the_pinned_ray(kind: str) -> None:
    spec = _clusters()[kind]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        # Work that serves waits for no node; all other work does.
        assert (group["minReplicas"] == 0) == (kind != "RayService")


def test_nodes_have_credentials_limits_and_an_image_of_the_dockerfile() -> None:
    built = re.findall(r"-t (\S+)", (ROOT / "infra" / "docker" / "Dockerfile").read_text())
    assert sorted(built) == ["glioray:cpu", "glioray:gpu"]
    for spec in _clusters().values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert {"secretRef": {"name": "glioray-s3"}} in container["envFrom"]
            assert {port["name"]: port["containerPort"] for port in container["ports"]}["metrics"] == 8080
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]
            assert container["image"] == built["nvidia.com/gpu" in resources["limits"]]
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounts == {volume["name"] for volume in group["template"]["spec"].get("volumes", [])}


def test_environment_variables_are_known_and_hold_no_secret() -> None:
    code = "".join(path.read_text() for path in (ROOT / "platform").rglob("*.py"))
    code += "".join(path.read_text() for path in (ROOT / "serve").glob("*.py"))
    seen = set()
    for pod in _pods():
        for container in pod["containers"]:
            for item in container.get("env", []):
                name = item["name"]
                seen.add(name)
                if re.search("SECRET|TOKEN|PASSWORD|KEY", name):
                    assert set(item["valueFrom"]) == {"secretKeyRef"}
                if name.startswith("GLIORAY_"):
                    assert f'"{name}"' in code
                elif name.startswith("MLFLOW_"):
                    assert hasattr(mlflow.environment_variables, name) or f'"{name}"' in code
    assert {"GLIORAY_STORAGE", "MLFLOW_TRACKING_URI", "REDIS_PASSWORD"} <= seen


def test_every_secret_has_its_command_and_is_no_document() -> None:
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
    text += (ROOT / "infra" / "docs" / "guides" / "kubernetes.md").read_text()
    made = set(re.findall(r"kubectl create secret generic (\S+)", text))
    used = {
        reference["name"]
        for _, document in DOCUMENTS
        for key in ("secretRef", "secretKeyRef")
        for reference in _values(document, key)
    }
    assert used == made
    assert all(document["kind"] != "Secret" for _, document in DOCUMENTS)


def test_services_policies_and_volumes_name_what_is_there() -> None:
    deployments = {
        document["metadata"]["name"]: document["spec"]["template"]["metadata"]["labels"]
        for _, document in DOCUMENTS
        if document["kind"] == "Deployment"
    }
    claims = {d["metadata"]["name"] for _, d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    ports = {}
    for _, document in DOCUMENTS:
        spec = document["spec"]
        if document["kind"] == "Service":
            assert spec["selector"] in deployments.values()
            ports[document["metadata"]["name"]] = spec["ports"][0]["port"]
        elif document["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"] in deployments.values()
            assert spec["ingress"][0]["from"]
    assert set(_values([d for _, d in DOCUMENTS], "claimName")) == claims
    addresses = {f"{name}:{port}" for name, port in ports.items()}
    assert {
        s["gcsFaultToleranceOptions"]["redisAddress"] for k, s in _clusters().items() if k != "RayJob"
    } <= addresses
    for pod in _pods():
        for container in pod["containers"]:
            env = {item["name"]: item.get("value", "") for item in container.get("env", [])}
            if "MLFLOW_TRACKING_URI" in env:
                assert env["MLFLOW_TRACKING_URI"].removeprefix("http://") in addresses


def test_each_job_has_a_rayjob_on_the_cluster() -> None:
    scripts = {path.stem for path in (ROOT / "jobs").glob("[!_]*.py")}
    assert {Path(name).stem for name in SHARED} == scripts
    names = {document["metadata"]["name"] for _, document in DOCUMENTS if document["kind"] == "RayCluster"}
    common = []
    for name, document in SHARED.items():
        spec = dict(document["spec"])
        assert set(spec["clusterSelector"].values()) <= names
        # To try again, older versions of KubeRay delete the selected cluster; newer ones refuse the two together.
        assert "backoffLimit" not in spec
        assert document["metadata"] == {"generateName": f"{Path(name).stem.replace('_', '-')}-"}
        assert shlex.split(spec.pop("entrypoint"))[:2] == ["python", f"jobs/{Path(name).stem}.py"]
        common.append(spec)
    assert all(spec == common[0] for spec in common)


@pytest.mark.contracts
@pytest.mark.parametrize("name", sorted(JOBS))
def test_an_entrypoint_has_flags_that_its_job_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("GLIORAY_STORAGE", "s3://glioray/runs")
    _, script, *arguments = shlex.split(JOBS[name]["spec"]["entrypoint"])
    job = runpy.run_path(str(ROOT / script))["job"]
    if Path(script).stem in RESOLVED:
        assert job.answer([*arguments, "--dry-run"])["config"]["recipe"] in arguments
    else:
        assert job.parse(arguments) is not None
    # A node's own folder is seen by one node only.
    places = [value for flag, value in itertools.pairwise(arguments) if flag in ("--data", "--out")]
    assert all(value.startswith("s3://") for value in places)


def test_the_service_deploys_the_endpoint_with_settings_that_it_has() -> None:
    (spec,) = [document["spec"] for _, document in DOCUMENTS if document["kind"] == "RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    module, _, function = str(application.import_path).partition(":")
    assert (module, function) == (build_app.__module__, build_app.__name__)
    settings = Settings(**application.args)
    assert settings.api_keys is not None
    assert config.http_options.request_timeout_s is not None
    assert config.http_options.request_timeout_s > 2 * settings.timeout_s
    assert spec["rayClusterDeletionDelaySeconds"] > config.http_options.request_timeout_s
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert {"containerPort": config.http_options.port, "name": "serve"} in container["ports"]
    assert settings.cpus <= float(container["resources"]["limits"]["cpu"])


@pytest.mark.contracts
def test_the_mlflow_service_answers_to_its_name() -> None:
    documents = {document["kind"]: document for name, document in DOCUMENTS if name == "mlflow.yaml"}
    (port,) = [item["port"] for item in documents["Service"]["spec"]["ports"]]
    (container,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    env = {item["name"]: item["value"] for item in container["env"]}
    hosts = env["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert f"{documents['Service']['metadata']['name']}:{port}" in hosts
    assert f"--port={port}" in container["args"]
    assert {argument.partition("=")[0] for argument in container["args"]} <= mlflow_server_flags()
