#!/usr/bin/env python3
"""Chaos: jobs on a cluster of several nodes, of which nodes, processes and servers are killed at random moments.

    GLIORAY_REAL_DATA=DIR python tests/benchmarks/chaos.py --kinds ddp sweep gan --rounds 9
    GLIORAY_REAL_DATA=DIR python tests/benchmarks/chaos.py --kinds ddp --rounds 0 --kills 20

Data, runs and MLflow's artifacts lie on an S3 server; the head takes no work. Each kind of job first runs once in peace. In
a round it runs again while faults come at random moments: a node is killed or taken away with notice (and another one, with
an empty disk, joins seconds later), a trial's or rank's process is killed, S3 or MLflow is killed and started again. With
`--kills` it is the job's driver that is killed, so many times in all, and the same command is submitted again each time.

A round passes when the job succeeds, every result equals that of the run in peace, MLflow has one run of each name and
none that still runs, every pointer on the storage names whole objects, and no node read a case's file twice. Ray Train
tells nodes apart by their addresses, which are one here: the ranks of a run share a cache, which reads each file once.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from killable import Parts, find_driver
from measure import brats_folder, refuse
from mlflow.tracking import MlflowClient
from serving import ROOT, running

from glioray.cases.nifti import encode_volume, read_volume
from glioray.engine.checkpoint import LATEST, PROGRESS, fetch_model, kept_folders, load_state
from glioray.engine.loop import CLOCKS
from glioray.storage import open_storage

# Of a run, or of each trial of a search: metric or epoch -> value.
Results = dict[str, dict[Any, float]]

JOB_S = 1500
_SETTINGS = "train.precision=fp32", "train.num_validations=4"
KINDS = {
    "ddp": [
        "train_unet.py", "--recipe", "unet_tiny", "--workers", "2", "--max-epochs", "8",
        "--set", "sample.steps_per_epoch=40",
    ],
    "sweep": [
        "tune_unet.py", "--recipe", "unet_tiny", "--trials", "3", "--concurrent", "2", "--max-epochs", "6",
        "--set", "sample.steps_per_epoch=40", "--search", "none", "--search", "optim.lr=0.001,0.005,0.02",
        "--point", "optim.lr=0.001", "--point", "optim.lr=0.02", "--name", "segmenter",
    ],
    "gan": [
        "tune_gan.py", "--recipe", "mri_tiny", "--trials", "3", "--concurrent", "2", "--max-epochs", "6",
        "--set", "sample.steps_per_epoch=20", "--search", "none",
        "--search", "optim_g.lr=0.0002,0.0005,0.1", "--point", "optim_g.lr=0.0005", "--point", "optim_g.lr=0.1", "--name", "resolver",
    ],
}  # fmt: skip
# In every Python of a job: notes each T1 that is fetched, in a file on the node's own disk.
_NOTE_READS = """
import os, sys

def note(event, args):
    if event == "http.client.send" and args[1].startswith(b"GET ") and b"_t1.nii.gz" in args[1].split(b"?")[0]:
        reads = os.open(os.path.join(os.environ["NODE_DISK"], "reads"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(reads, args[1].split()[1].split(b"?")[0].rsplit(b"/", 1)[1] + b"\\n")
        os.close(reads)

if "NODE_DISK" in os.environ:
    sys.addaudithook(note)
"""


class Jobs:
    """Submits jobs and reads what they answer."""

    def __init__(self, parts: Parts, hook: Path) -> None:
        # Imported here: it reads the token's variables.
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)

        self.client = JobSubmissionClient(parts.head.address)
        self.variables = {
            "PYTHONPATH": str(hook),
            "MLFLOW_TRACKING_URI": parts.mlflow.address,
            "HOME": str(parts.folder),
        }
        self.folder = parts.folder

    def submit(self, *command: str) -> str:
        shared = {"GLIORAY_CACHE": str(self.folder / "shared" / "slices")} if "--workers" in command else {}
        return str(
            self.client.submit_job(
                entrypoint="python jobs/" + " ".join(command),
                runtime_env={"working_dir": str(ROOT), "env_vars": self.variables | shared},
            )
        )

    def state(self, job: str) -> str:
        return str(self.client.get_job_status(job).value)

    def wait(self, job: str, deadline_s: float = JOB_S) -> str:
        end = time.monotonic() + deadline_s
        while self.state(job) in ("PENDING", "RUNNING"):
            if time.monotonic() > end:
                self.client.stop_job(job)
                return f"STILL RUNNING AFTER {deadline_s:.0f} s"
            time.sleep(0.5)
        return self.state(job)

    def answer(self, job: str) -> dict[str, Any]:
        log = self.log(job)
        line = next((line for line in reversed(log.splitlines()) if line.startswith("{")), "{}")
        value: dict[str, Any] = json.loads(line)
        return value

    def log(self, job: str) -> str:
        log = self.client.get_job_logs(job)
        (self.folder / f"{job}.log").write_text(log)
        return str(log)


def command_of(kind: str, manifest: str, run_name: str) -> list[str]:
    """A job's script and flags."""
    sets = [flag for setting in _SETTINGS for flag in ("--set", setting)]
    place = ["--data", manifest, "--storage", "s3://runs", "--experiment", "chaos", "--run-name", run_name]
    return [*KINDS[kind], *place, *sets, "--worker-cpus", "1", "--save-minutes", "0.05"]


def results_of(answer: dict[str, Any], run_name: str) -> Results:
    """What must not depend on faults: the metrics of a run, or of a search's trials each epoch's objective."""
    if "trials" not in answer:
        return {"run": {name: value for name, value in answer["metrics"].items() if name not in CLOCKS}}
    client, found, results = MlflowClient(), find_runs(run_name), dict[str, dict[Any, float]]()
    for row in answer["trials"]:
        (run,) = [run for run in found if run.info.run_name.endswith(row["trial"])]
        history = client.get_metric_history(run.info.run_id, "objective")
        results[json.dumps(row["settings"])] = {metric.step: metric.value for metric in history}
    return results


def compare(quiet: Results, found: Results) -> list[str]:
    """How results differ; how far a trial gets before ASHA stops it depends on which others were there before."""
    problems = [f"{name} is in one of the two alone" for name in quiet.keys() ^ found.keys()]
    for name in quiet.keys() & found.keys():
        shared = quiet[name].keys() & found[name].keys()
        problems += [
            f"{name}, {key}: {found[name][key]} where {quiet[name][key]} was found in peace"
            for key in shared
            if quiet[name][key] != found[name][key]
        ]
        if not shared:
            problems.append(f"{name} has nothing to compare")
    return problems


def find_runs(run_name: str) -> list[Any]:
    """A job's runs in MLflow."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if str(run.info.run_name).startswith(run_name)]


def check_mlflow(run_name: str) -> list[str]:
    """What is wrong with a job's runs in MLflow."""
    found = find_runs(run_name)
    counts = Counter(run.info.run_name for run in found)
    problems = [f"{count} runs are named {name}" for name, count in counts.items() if count > 1]
    # Trials that ASHA or their collapse score stops are "KILLED".
    ended = {"FINISHED", "KILLED"}
    problems += [f"{run.info.run_name} is {run.info.status}" for run in found if run.info.status not in ended]
    return problems if found else ["MLflow has no run"]


def check_storage(run_name: str, scratch: Path) -> list[str]:
    """Which pointers of a job name something that is not whole."""
    keys = [item.key for item in open_storage("s3://runs").list(f"{run_name}/")]
    problems = []
    folders = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] in (LATEST, PROGRESS)}
    for folder in sorted(folders):
        storage = open_storage(f"s3://runs/{folder}")
        try:
            load_state(storage)
            for kept in kept_folders(storage):
                fetch_model(storage, Path(tempfile.mkdtemp(dir=scratch)), kept)
        except Exception as error:
            problems.append(f"{folder}: {error}")
    return problems if folders else ["nothing was saved"]


def check_reads(parts: Parts, *, is_shared: bool, had_s3_restart: bool) -> list[str]:
    """Which files a node, or with a shared cache any, read twice since the last check.

    A read that S3's end broke off may be repeated.
    """
    counts: dict[str, Counter[str]] = {}
    for file in parts.folder.glob("*/reads"):
        node = "all nodes" if is_shared else file.parent.name
        counts.setdefault(node, Counter()).update(file.read_text().split())
        file.unlink()
    return [
        f"{node} read {name} {count} times"
        for node, names in counts.items()
        for name, count in names.items()
        if count > 1 and not had_s3_restart
    ]


def empty_caches(parts: Parts) -> None:
    """Make each round decode anew."""
    for folder in parts.folder.glob("*/slices"):
        folder.rename(folder.with_name(f"old-{time.monotonic_ns()}"))


def copy_cases(number: int, stride: int) -> None:
    """Put real cases, of which every so many voxels are kept, into the bucket."""
    storage = open_storage("s3://data/brats")
    for case in sorted(brats_folder().iterdir())[:number]:
        for file in sorted(case.glob("*.nii.gz")):
            volume = read_volume(file.read_bytes(), name=file.name)
            array = volume.array[::stride, ::stride, ::stride]
            affine = volume.affine.copy()
            affine[:3, :3] *= stride
            storage.write(f"{case.name}/{file.name}", encode_volume(array, affine))


def run_with_faults(
    parts: Parts, jobs: Jobs, command: Sequence[str], duration_s: float, num_faults: int
) -> tuple[str, list[str]]:
    """Run a job while faults come; returns the job and what happened."""
    faults: list[Callable[[float], str]] = [
        parts.kill_node, parts.take_node, parts.kill_worker, parts.restart_s3, parts.restart_mlflow,
    ]  # fmt: skip
    moments = sorted(random.uniform(10, duration_s) for _ in range(num_faults))
    chosen = random.sample(faults, num_faults)
    began, told = time.monotonic(), list[str]()
    job = jobs.submit(*command)
    for moment, fault in zip(moments, chosen, strict=True):
        while time.monotonic() < began + moment and jobs.state(job) in ("PENDING", "RUNNING"):
            time.sleep(0.2)
        at = time.monotonic() - began
        if jobs.state(job) not in ("PENDING", "RUNNING"):
            break
        told.append(f"{at:.0f} s: {fault(random.uniform(3, 15))}")
    jobs.wait(job)
    return job, told


def run_with_kills(
    jobs: Jobs, command: Sequence[str], run_name: str, num_kills: int
) -> tuple[str, list[str]]:
    """Run a job whose driver is killed, and submit it again each time, until it ends by itself."""
    told = list[str]()
    while True:
        job, began = jobs.submit(*command), time.monotonic()
        moment = random.uniform(12, 40)
        while jobs.state(job) in ("PENDING", "RUNNING") and time.monotonic() < began + moment:
            time.sleep(0.2)
        driver = find_driver(run_name) if len(told) < num_kills else None
        if driver is None:
            jobs.wait(job)
            return job, told
        driver.kill()
        state = jobs.wait(job, 120)
        step = saved_step(run_name)
        told.append(
            f"{moment:.1f} s after it was submitted the driver was killed: {state}, step {step} saved"
        )


def saved_step(run_name: str) -> int:
    """The newest step that a run has saved."""
    storage = open_storage(f"s3://runs/{run_name}")
    found = [json.loads(storage.read(name))["step"] for name in (LATEST, PROGRESS) if storage.exists(name)]
    return max(map(int, found), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=9, help="with faults, of all kinds together")
    parser.add_argument("--faults", type=int, default=2, help="of a round, each of another kind; at most 5")
    parser.add_argument("--kills", type=int, default=0, help="of a driver, of the first kind")
    parser.add_argument("--nodes", type=int, default=3, help="that take work, of one CPU each")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--stride", type=int, default=3, help="of the voxels that are kept, along each axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for logs and data, in place of a temporary one")
    args = parser.parse_args()
    if not 1 <= args.faults <= 5 or min(args.nodes, args.cases, args.stride) < 1:
        refuse("--faults is 1 to 5, and other numbers are at least 1")
    random.seed(args.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = args.keep or Path(scratch)
        (folder / "hook").mkdir(parents=True)
        (folder / "shared").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(_NOTE_READS)
        parts = Parts(folder)
        with running(parts):
            parts.start(args.nodes)
            passed = run_rounds(parts, Jobs(parts, folder / "hook"), args, Path(scratch))
    raise SystemExit(0 if passed else 1)


def run_rounds(parts: Parts, jobs: Jobs, args: argparse.Namespace, scratch: Path) -> bool:
    """All that was asked for; returns whether everything passed."""
    copy_cases(args.cases, args.stride)
    prepared = jobs.submit("prepare.py", "--data", "s3://data/brats", "--out", "s3://data/manifest")
    if jobs.wait(prepared) != "SUCCEEDED":
        refuse(f"the manifest could not be made: {jobs.log(prepared)[-2000:]}")
    manifest = jobs.answer(prepared)["manifest"]
    check_reads(parts, is_shared=True, had_s3_restart=True)
    quiet, durations, outcomes = {}, {}, list[bool]()

    def check(kind: str, run_name: str, job: str, told: Sequence[str], seconds: float) -> None:
        state, answer = jobs.state(job), jobs.answer(job)
        for line in told:
            print(f"  {line}")
        problems = [] if state == "SUCCEEDED" else [f"the job {job} is {state}"]
        if not problems:
            problems += compare(quiet[kind], results_of(answer, run_name))
        problems += check_mlflow(run_name) + check_storage(run_name, scratch)
        problems += check_reads(
            parts, is_shared=kind == "ddp", had_s3_restart=any("S3" in line for line in told)
        )
        for problem in problems:
            print(f"  WRONG: {problem}")
        print(f"{run_name}: {'FAILED' if problems else 'passed'} in {seconds:.0f} s", flush=True)
        outcomes.append(not problems)
        empty_caches(parts)

    for kind in args.kinds:
        began, run_name = time.monotonic(), f"{kind}-quiet"
        job = jobs.submit(*command_of(kind, manifest, run_name))
        if jobs.wait(job) != "SUCCEEDED":
            refuse(f"the run in peace failed: {jobs.log(job)[-3000:]}")
        durations[kind] = time.monotonic() - began
        quiet[kind] = results_of(jobs.answer(job), run_name)
        check(kind, run_name, job, [f"in peace: {quiet[kind]}"], durations[kind])
    for number in range(args.rounds):
        kind = args.kinds[number % len(args.kinds)]
        began, run_name = time.monotonic(), f"{kind}-round{number}"
        job, told = run_with_faults(
            parts, jobs, command_of(kind, manifest, run_name), durations[kind], args.faults
        )
        check(kind, run_name, job, told, time.monotonic() - began)
    left, number = args.kills, 0
    while left > 0:
        kind, run_name, began = args.kinds[0], f"{args.kinds[0]}-kills{number}", time.monotonic()
        job, told = run_with_kills(jobs, command_of(kind, manifest, run_name), run_name, left)
        check(kind, run_name, job, told, time.monotonic() - began)
        left, number = left - len(told), number + 1
    line = {"rounds": len(outcomes), "passed": sum(outcomes), "seed": args.seed}
    print(json.dumps(line))
    return all(outcomes)


if __name__ == "__main__":
    main()
