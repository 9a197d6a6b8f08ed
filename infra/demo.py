"""`infra/local.sh demo`: from nothing to a served model, on phantom data, by the same jobs as on a cluster.

Every step leaves its result in `.glioray/demo/`; a second demo finds it there, says so, and goes on. Trainings have a
number of steps, not of minutes, so that a slow machine takes longer and learns as much.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from local import HOME, NUM_PHANTOMS, PHANTOM, ROOT, client_env, make_phantoms, up
from processes import LOOPBACK, Service, ServiceError, free_port, make_folder

OUT = HOME / "demo"
RECIPE = "unet_phantom"
EXPERIMENT = "demo"
# Beside the recipe's own of 2e-3: clearly too low, and both sides of it.
RATES = (2e-4, 6e-3, 2e-2)
LEAST_DICE = 0.5
# What Ray says of itself between the job's own lines; all of it is in the step's log.
_CHATTER = re.compile(r"\b(INFO|SUCC|ERR|WARNING)\b.{0,20}\b\w+\.py:\d+ -- |^Running entrypoint for job ")
# Terminal codes, and what Ray adds where it leaves out similar lines.
_TRIMMED = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\s*\[repeated \d+x across cluster\].*$")
# Ray repeats the end of a failed job's output behind this.
_REPEATED = "last available logs"
_SERVE_DEADLINE_S = 60


def run_demo() -> None:
    """All the steps.

    Raises:
        ServiceError: a step failed; the message says which.
    """
    clock, services, env = begin(num_steps=7)

    clock.step(f"tune a U-Net: {1 + len(RATES)} trials by {RECIPE}, which says how many steps each takes")
    points = [point for rate in RATES for point in ("--point", f"optim.lr={rate:g}")]
    tuned = tune("tune", ["jobs/tune_unet.py", "--recipe", RECIPE, *points], 1 + len(RATES), env, clock)
    clock.note(_scores(tuned["metrics"]), tuned["model"])
    _check_learned(tuned)

    clock.step("promote the winner to `champion`")
    champion = promote("promote", tuned["model"], env, clock)

    clock.step("serve the champion")
    endpoint = serve(env, champion, clock)

    case_id = sorted(path.name for path in PHANTOM.iterdir() if path.is_dir())[-1]
    clock.step(f"segment {case_id} by HTTP")
    mask = _segment(endpoint, case_id, clock)

    clock.step("draw the mask over the image")
    picture = _draw(case_id, mask)

    say_where(
        services,
        clock,
        tuned["run_id"],
        {
            "page": f"{endpoint}/",
            "endpoint": f"{endpoint}/v1/segment",
            "mask": short(mask),
            "overlay": short(picture),
        },
    )


def _check_learned(tuned: Mapping[str, Any]) -> None:
    """Refuse a winner that has learned next to nothing.

    Raises:
        ServiceError: says how good it is, and what to look at.
    """
    dice = tuned["metrics"]["dice_mean"]
    if dice < LEAST_DICE:
        raise ServiceError(
            f"the winner's mean Dice is {dice:.2f}, expected at least {LEAST_DICE:g}: training does not work here; look "
            f"at the loss and the Dice of run {tuned['run_id']} in MLflow, remove {short(OUT)} and try again"
        )


def begin(num_steps: int) -> tuple[Clock, dict[str, Service], dict[str, str]]:
    """The first two steps of a demo: data and services; returns also the environment of their users."""
    clock = Clock(num_steps)
    make_folder(OUT)
    runpy.run_path(str(ROOT / "jobs" / "_path.py"))
    clock.step(f"{NUM_PHANTOMS} phantom cases")
    clock.note("written" if make_phantoms() else "reused: they are there", PHANTOM)
    clock.step("MLflow and Ray on this machine")
    services = up()
    return clock, services, client_env(services)


class Clock:
    """Prints the steps as they come, with the time since the start."""

    def __init__(self, num_steps: int) -> None:
        self.started = time.monotonic()
        self.number, self.num_steps = 0, num_steps

    @property
    def elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def step(self, title: str) -> None:
        self.number += 1
        print(f"\n[{self.number}/{self.num_steps}] {title}  ({self.elapsed})", flush=True)

    def note(self, *parts: object) -> None:
        print("    " + "  ".join(str(short(part)) for part in parts), flush=True)


def tune(
    name: str, command: list[str], num_trials: int, env: Mapping[str, str], clock: Clock
) -> dict[str, Any]:
    """The search's result: what an earlier demo left for the same recipe and flags, or else that of a new one."""
    from glioray.serialization import fingerprint
    from glioray.tasks import find_recipe

    recipe = command[command.index("--recipe") + 1]
    # A recipe that has changed since is another run.
    run_name = f"demo-{fingerprint([find_recipe(recipe).recipes[recipe](), command])}"
    path = OUT / f"{run_name}.json"
    if path.exists():
        clock.note(f"reused: the result of an earlier demo; remove {short(path)} to run it again")
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    # fmt: off
    flags = [
        "--data", str(PHANTOM), "--trials", str(num_trials), "--run-name", run_name, "--experiment", EXPERIMENT,
    ]
    # fmt: on
    result = submit(name, [*command, *flags], env)
    path.write_text(json.dumps(result, indent=2))
    return result


def promote(name: str, model: str, env: Mapping[str, str], clock: Clock) -> str:
    """Let a model try for its alias; returns the champion's URI, whoever that is now."""
    promoted = submit(name, ["jobs/promote.py", "--model", model, "--data", str(PHANTOM)], env)
    champion: str = promoted["candidate"] if promoted["promoted"] else promoted["champion"]
    clock.note(champion, promoted["reason"])
    return champion


def submit(name: str, command: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Submit a job as a user would, show its lines, return the JSON object that it ends with."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    # The repository's history stays behind when the working directory is uploaded.
    prefix = ["env", f"GLIORAY_GIT_COMMIT={commit.stdout.strip()}"] if commit.returncode == 0 else []
    ray = str(Path(sys.executable).parent / "ray")
    submit = [ray, "job", "submit", "--working-dir", ".", "--", *prefix, "python"]
    print(
        f"    $ ray job submit --working-dir . -- python {' '.join(map(str, map(short, command)))}",
        flush=True,
    )
    result, repeated = None, False
    with (OUT / f"{name}.log").open("w") as log:
        job = subprocess.Popen(
            [*submit, *command],
            cwd=ROOT,
            # Or its lines would arrive by the block, minutes late.
            env={**env, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert job.stdout is not None
        for line in job.stdout:
            log.write(line)
            repeated |= _REPEATED in line
            line = _TRIMMED.sub("", line.rstrip())
            if line.startswith("{") and (found := _parse(line)) is not None:
                result = found
            elif line and not repeated and not _CHATTER.search(line):
                print(f"    {line}", flush=True)
    if job.wait() != 0:
        raise ServiceError(f"the job {command[0]} failed, see above; all of its output is in {log.name}")
    if result is None:
        raise ServiceError(f"the job {command[0]} ended without its JSON result; its output is in {log.name}")
    return result


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def serve(env: Mapping[str, str], champion: str, clock: Clock) -> str:
    """The address of the endpoint that serves `champion`, of either task; started unless it runs already."""
    path = OUT / "serve.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    # An endpoint lives in its cluster, and follows the aliases by itself.
    runs = earlier.get("ray") == env["RAY_ADDRESS"]
    if runs and champion in _served(earlier["endpoint"]):
        clock.note("reused: it is served already", earlier["endpoint"])
        return str(earlier["endpoint"])
    port = int(earlier["endpoint"].rpartition(":")[2]) if runs else free_port()
    endpoint = f"http://{LOOPBACK}:{port}"
    command = ["serve/app.py", "--host", LOOPBACK, "--port", str(port)]
    if env.get("GLIORAY_API_KEYS"):
        # The keys of another endpoint: this one answers its own machine alone.
        command.append("--no-keys")
    print(f"    $ python {' '.join(command)}", flush=True)
    with (OUT / "serve.log").open("w") as log:
        app = subprocess.run([sys.executable, *command], cwd=ROOT, env=dict(env), stdout=log, stderr=log)
    if app.returncode != 0:
        raise ServiceError(f"serve/app.py ended with status {app.returncode}; its log is {log.name}")
    deadline = time.monotonic() + _SERVE_DEADLINE_S
    while champion not in (served := _served(endpoint)):
        if time.monotonic() > deadline:
            found = ", ".join(served) or "nothing"
            raise ServiceError(f"{endpoint} serves {found} and not {champion}; {log.name} says why")
        time.sleep(0.5)
    path.write_text(json.dumps({"endpoint": endpoint, "ray": env["RAY_ADDRESS"]}))
    clock.note("ready", endpoint)
    return endpoint


def _served(endpoint: str) -> list[str]:
    """The versions that an endpoint serves; none where it does not answer."""
    try:
        models = requests.get(f"{endpoint}/v1/models", timeout=5).json()["models"]
    except (requests.RequestException, ValueError, KeyError):
        return []
    return [str(model["version"]) for model in models]


def _segment(endpoint: str, case_id: str, clock: Clock) -> Path:
    """Send the four images of a case; keeps the mask, prints the volumes."""
    names = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
    folder = PHANTOM / case_id
    parts = {field: (folder / f"{case_id}_{name}.nii.gz").read_bytes() for field, name in names.items()}
    files = {field: (f"{field}.nii.gz", data, "application/gzip") for field, data in parts.items()}
    url = f"{endpoint}/v1/segment"
    reply = requests.post(url, files=files, timeout=120)
    volumes = requests.post(url, files=files, headers={"Accept": "application/json"}, timeout=120)
    for answer in (reply, volumes):
        if not answer.ok:
            raise ServiceError(f"POST {url} answered {answer.status_code}: {answer.text[:300]}")
    path = OUT / f"{case_id}_mask.nii.gz"
    path.write_bytes(reply.content)
    report = volumes.json()
    clock.note(json.dumps({key: report[key] for key in ("model", "volumes_ml", "num_lesions", "notice")}))
    return path


def _draw(case_id: str, mask: Path) -> Path:
    """A PNG of three axial slices with much tumour: image, truth and answer."""
    import numpy as np

    from glioray.cases.labels import to_internal
    from glioray.cases.layouts import discover_cases
    from glioray.cases.load import load_case
    from glioray.cases.nifti import read_volume, to_canonical
    from glioray.config import MODALITIES
    from glioray.storage import open_storage
    from glioray.tasks.segmentation.figures import overlay_figure

    storage = open_storage(PHANTOM)
    files = next(files for files in discover_cases(storage)[0] if files.case_id == case_id)
    case = load_case(storage, files)
    assert case.mask is not None
    assert case.convention is not None
    volume = read_volume(mask.read_bytes(), name=mask.name)
    stored, _ = to_canonical(volume.array, volume.affine)
    answer = to_internal(stored, case.convention)
    area = (case.mask > 0).sum(axis=(0, 1))
    centre = int(area.argmax())
    chosen = sorted({max(centre - 5, 0), centre, min(centre + 5, len(area) - 1)})

    def slices(array: np.ndarray) -> np.ndarray:
        return np.stack([np.rot90(array[:, :, z]) for z in chosen])

    flair = case.images[MODALITIES.index("flair")]
    titles = [f"{case_id} z={z}" for z in chosen]
    figure = overlay_figure(slices(flair), slices(case.mask), slices(answer), titles)
    path = OUT / f"{case_id}_overlay.png"
    figure.savefig(path, dpi=110)
    return path


def _scores(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {metrics[name]:.2f}" for name in ("dice_wt", "dice_tc", "dice_et") if name in metrics
    )


def short(part: object) -> object:
    """A path below the repository's root relative to it, anything else as it is."""
    text = str(part)
    return text.removeprefix(f"{ROOT}/") if text.startswith(str(ROOT)) else part


def _run_page(address: str, run_id: str) -> str:
    """The page of a run in MLflow, whose port may differ from that of an earlier demo."""
    reply = requests.get(f"{address}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=60)
    if not reply.ok:
        return address
    experiment_id = reply.json()["run"]["info"]["experiment_id"]
    # Without the type of work, MLflow shows a newcomer its page for language models.
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def say_where(services: Mapping[str, Service], clock: Clock, run_id: str, made: Mapping[str, object]) -> None:
    """The last lines: the search in MLflow, Ray, and what a demo has made, by name."""
    token = short(services["ray"].env["RAY_AUTH_TOKEN_PATH"])
    print(f"\ndone in {clock.elapsed}; all of it keeps running until `bash infra/local.sh down`. Look here:")
    for name, where in {
        "MLflow": _run_page(services["mlflow"].address, run_id),
        "Ray": f"{services['ray'].address} (the token is in {token})",
        **made,
    }.items():
        print(f"  {name:9} {where}")
    print(
        "Phantoms are not patients. A small model trained on real cases segments one of your own:\n"
        "  python jobs/predict.py --model starter --data FOLDER --out FOLDER"
    )
    print("research use only: not a medical device", flush=True)
