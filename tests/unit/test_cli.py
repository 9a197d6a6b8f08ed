"""What the jobs share: flags, the config that they resolve to, URIs, and one JSON object on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glioray.api.configs import resolve_config
from glioray.api.data import open_data
from glioray.api.models import resolve_model, resolve_registered
from glioray.api.places import absolute_uri, choose_run_name, data_uri, out_uri, storage_uri, use_tracking
from glioray.api.prepare import shown_preprocessing
from glioray.cases.casefiles import CaseFiles
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.cli import Job
from glioray.cli.job import run_job
from glioray.config import MODALITIES, OPTIMIZERS, NetConfig, PreprocessConfig
from glioray.errors import DataError, ModelError, StorageError, TrainingError, UsageError
from glioray.losses import SEGMENTATION_LOSSES
from glioray.nets import SEGMENTATION_NETS
from glioray.tasks import open_labelling, open_package
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.superres.package import SuperResSpec, write_superres
from glioray.tasks.superres.recipes import mri_tiny


def _request(*argv: str) -> Any:
    parsed = Job("train", "A job.", task="segmentation", recipe_variable="GLIORAY_RECIPE").parse(argv)
    assert parsed is not None
    return parsed[0]


def _config(*argv: str) -> Any:
    return resolve_config(_request(*argv))[1]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--mood", "good"], "unrecognized arguments: --mood"),
        (["--seed", "three"], "--seed"),
        (["--seed", "1.5"], "--seed: '1.5' is not a whole number"),
        (["--minutes", "soon"], "--minutes"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--workers"], "--workers requires an argument"),
        (["--data", "--seed", "3"], "--data requires an argument"),
        # No abbreviations: a later flag must not change what a script means.
        (["--max-epoch", "3"], "unrecognized arguments: --max-epoch; did you mean --max-epochs?"),
        (["--segmenter", "models:/a@champion"], "unrecognized arguments: --segmenter"),
        (["--task", "superres"], "unrecognized arguments: --task"),
        (["left over"], "unrecognized arguments: left over"),
        (["--no-dry-run"], "unrecognized arguments: --no-dry-run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_are_not_understood(argv: list[str], sentence: str):
    with pytest.raises(UsageError) as caught:
        _request(*argv)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_a_flag_that_is_repeated_the_last_counts():
    request = _request("--seed", "1", "--seed", "2", "--set", "a.b=1", "--set", "c=x=y", "--data=folder")
    assert (request.seed, request.data) == (2, "folder")
    assert request.set == {"a.b": 1, "c": "x=y"}


def test_flags_of_other_kinds():
    def parse(verb: str, *argv: str) -> Any:
        parsed = Job(verb, "A job.").parse(argv)
        assert parsed is not None
        return parsed[0]

    shares = parse("prepare", "--ratios", "0.5", "0.25", "0.25", "--shuffle", "--folds", "3")
    assert (shares.ratios, shares.shuffle, shares.folds) == ((0.5, 0.25, 0.25), True, 3)
    assert parse("ensemble", "--model", "a", "--model", "b").model == ("a", "b")
    assert parse("predict", "--labels", "msd", "--uncertainty").uncertainty
    for verb in (
        "prepare",
        "train",
        "tune",
        "compare",
        "evaluate",
        "predict",
        "promote",
        "calibrate",
    ):
        assert parse(verb, "--labels", "1=ed,2=ncr,3=et").labels == "msd"
        with pytest.raises(UsageError, match=r"^--labels is 'nnunet'; expected one of brats-et4, brats-et3"):
            parse(verb, "--labels", "nnunet")


def test_flags_override_the_recipe():
    config = _config("--recipe", "unet_tiny", "--seed", "7", "--workers", "2", "--minutes", "3")
    assert config.recipe == "unet_tiny"
    assert (config.train.seed, config.train.num_workers, config.train.minutes) == (7, 2, 3.0)
    assert config.train.max_epochs == build_recipe("unet_tiny").train.max_epochs


def test_max_epochs_alone_switches_the_recipes_minutes_off():
    recipe = build_recipe("unet_small")
    assert recipe.train.minutes is not None
    assert _config().train == recipe.train
    assert _config("--max-epochs", "2").train == recipe.train.replace(max_epochs=2, minutes=None)
    both = _config("--max-epochs", "2", "--minutes", "5").train
    assert (both.max_epochs, both.minutes) == (2, 5.0)


def test_the_recipe_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert _config().recipe == "unet_small"
    monkeypatch.setenv("GLIORAY_RECIPE", "unet_tiny")
    assert _config().recipe == "unet_tiny"
    assert _config("--data", "elsewhere").recipe == "unet_small"
    assert _config("--recipe", "unet_brats").recipe == "unet_brats"


@pytest.mark.parametrize("recipe", ["unet_tiny", "unet_small"])
def test_every_name_of_a_registry_is_a_value_of_its_flag(recipe: str):
    for name in SEGMENTATION_NETS:
        assert _config("--recipe", recipe, "--net", name).net.name == name
    for name in SEGMENTATION_LOSSES:
        assert _config("--recipe", recipe, "--loss", name).loss.name == name
    for name in OPTIMIZERS:
        assert _config("--recipe", recipe, "--optimizer", name).optim.name == name


def test_options_may_be_lists():
    config = _config(
        *("--net", "resenc:blocks=[1, 2,1],width=8", "--loss", "ce:class_weights=[1,2,2,3]"),
    )
    assert config.net.options == {"stem_stride": 2, "prior": 0.12, "blocks": [1, 2, 1], "width": 8}
    assert config.loss.options == {"class_weights": [1, 2, 2, 3]}


def test_set_takes_json_and_plain_words():
    config = _config(
        *("--set", "optim.lr=1e-3", "--set", "train.precision=fp32", "--set", "preprocess.size=[64, 96]"),
        *("--set", 'preprocess.planes=["coronal"]', "--set", "sample.foreground_share=null"),
        *("--set", "net.options.width=8", "--set", "net.options.norm=instance", "--set", "optim.ema=0"),
    )
    assert (config.optim.lr, config.optim.ema, config.train.precision) == (1e-3, 0.0, "fp32")
    assert (config.preprocess.size, config.preprocess.planes) == ((64, 96), ("coronal",))
    assert config.sample.foreground_share is None
    assert (config.net.options["width"], config.net.options["norm"]) == (8, "instance")


def test_set_goes_together_with_flags():
    config = _config("--workers", "3", "--set", "train.batch_size=12")
    assert (config.train.num_workers, config.train.batch_size) == (3, 12)
    timed = _config("--max-epochs", "2", "--set", "train.minutes=4")
    assert (timed.train.max_epochs, timed.train.minutes) == (2, 4.0)
    assert _config("--set", "train.minutes=null").train.minutes is None


def test_the_preparation_that_a_report_shows():
    def shown(*argv: str) -> PreprocessConfig | None:
        parsed = Job("prepare", "A job.").parse(argv)
        assert parsed is not None
        return shown_preprocessing(parsed[0])

    assert shown() is None
    assert shown("--report") is None
    assert shown("--report", "--recipe", "unet_brats") == build_recipe("unet_brats").preprocess
    config = shown("--report", "--set", "preprocess.clahe=0.02")
    assert config == build_recipe("unet_small").preprocess.replace(clahe=0.02)
    with pytest.raises(
        UsageError, match="--recipe and --set choose the preprocessing that --report shows; give --report too"
    ):
        shown("--set", "preprocess.n4=true")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["--recipe", "unet_huge"],
            "no recipe 'unet_huge' of the task segmentation; the recipes are unet_tiny",
        ),
        (["--set", "optim.lr"], "--set optim.lr has no '='; write it as optim.lr=0.001"),
        (["--set", "optim.speed=1"], "no setting 'optim.speed'; optim has name, lr, "),
        (["--set", "optim.lr.x=1"], "no setting 'optim.lr.x'; optim.lr is "),
        (["--set", "optim.lr=fast"], "optim.lr is 'fast'; expected a number above 0 and at most 10"),
        (["--set", "optim.lr=NaN"], "optim.lr is nan; expected a number above 0"),
        (["--workers", "3"], "train.batch_size is 16; expected a multiple of the 3 workers"),
        (["--minutes", "0"], "train.minutes is 0.0; expected None or above 0"),
        (["--max-epochs", "-1"], "train.max_epochs is -1; expected at least 1"),
        (["--set", "net.name=resnet9000"], "No network 'resnet9000'; available: "),
        (["--set", "net.options.girth=3"], "network 'unet' does not accept these options: "),
        (["--set", "net.options.width=wide"], "network 'unet' does not accept these options: "),
        (["--set", "net.options.depth=9"], "width is 32 and depth is 9; expected width >= 1"),
        (["--set", "loss.name=hinge"], "loss.name is 'hinge'; expected one of boundary, ce, "),
        (["--set", "loss.options.gamma=2"], "loss 'region_dice_bce' does not accept these options: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_configs_that_cannot_be(argv: list[str], sentence: str):
    with pytest.raises(UsageError) as caught:
        _config(*argv)
    assert str(caught.value).startswith(sentence)


def test_what_was_not_named(monkeypatch: pytest.MonkeyPatch):
    for call, sentence in (
        (data_uri, "no data given; give --data with a folder or s3://bucket/prefix, or set GLIORAY_DATA"),
        (out_uri, "no place for the results; give --out with a folder or s3://bucket/prefix"),
        (resolve_model, "no model given; give --model, such as models:/"),
        (
            lambda uri: resolve_registered(uri, None),
            "no model given; give --model, such as models:/glioray-unet/3 or runs:/",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            call(None)
        assert str(caught.value).startswith(sentence)
    monkeypatch.setenv("GLIORAY_DATA", "s3://bucket/data/")
    assert data_uri(None) == "s3://bucket/data"
    assert data_uri("s3://other") == "s3://other"
    with pytest.raises(
        UsageError, match=r"'/a/folder' is not a registered model; give models:/NAME/VERSION or runs:"
    ):
        resolve_registered("/a/folder", None)


def test_relative_folders_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("data", "--data") == str(tmp_path / "data")
    assert absolute_uri("s3://bucket/data/", "--data") == "s3://bucket/data"
    monkeypatch.setenv("GLIORAY_STORAGE", "runs")
    assert storage_uri(None) == str(tmp_path / "runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GLIORAY_STORAGE")
    assert storage_uri(None) == str(tmp_path / "glioray")


def test_relative_folders_are_refused_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shipped = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(shipped))
    for uri in ("data", "file://data", "./data"):
        with pytest.raises(
            UsageError, match=r"--out is the relative folder '.*data', which a submitted job would"
        ):
            absolute_uri(uri, "--out")
    assert absolute_uri(str(tmp_path), "--out") == str(tmp_path)
    assert absolute_uri(f"file://{tmp_path}", "--out") == str(tmp_path)
    assert absolute_uri("~/data", "--out") == str(Path("~/data").expanduser())
    assert absolute_uri("s3://bucket", "--out") == "s3://bucket"
    # A job that brings no folder of its own runs in the folder it was given.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    assert absolute_uri("data", "--out") == str(Path("data").absolute())


@pytest.mark.parametrize("name", ["a/b", "..", "", "-", "a b", "é?"])
def test_run_names_that_are_no_folders(name: str):
    if name:
        with pytest.raises(UsageError, match=r"--run-name is '.*'; use letters, digits"):
            choose_run_name(name, "unet_tiny")
    else:
        assert choose_run_name(None, "unet_tiny").startswith("unet_tiny-2")
    assert choose_run_name("a-1_b.2", "unet_tiny") == "a-1_b.2"


def test_numbers_of_trials():
    job = Job("tune", "A job.", task="segmentation")
    parsed = job.parse(["--trials", "1", "--concurrent", "2"])
    assert parsed is not None
    assert (parsed[0].trials, parsed[0].concurrent) == (1, 2)
    for flag in ("--trials", "--concurrent"):
        with pytest.raises(UsageError, match=f"{flag} is 0; expected at least 1"):
            job.parse([flag, "0"])


def test_tracking_without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    with use_tracking("s3://bucket") as address:
        assert address == "http://server:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with (
        pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set; point it at your MLflow server"),
        use_tracking("s3://bucket"),
    ):
        pytest.fail("there can be no file in a bucket")
    with use_tracking(str(tmp_path / "runs")) as address:
        assert address == f"sqlite:///{tmp_path}/runs/mlflow.db" == os.environ["MLFLOW_TRACKING_URI"]
    # Another call may keep its runs elsewhere.
    assert os.environ["MLFLOW_TRACKING_URI"] == ""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with use_tracking(str(tmp_path / "runs")):
        pass
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert (tmp_path / "runs").is_dir()


def _entry(case_id: str, patient_id: str, *, has_mask: bool = True) -> CaseEntry:
    return CaseEntry(
        files=CaseFiles(
            case_id=case_id, patient_id=patient_id, layout="brats2021", images={m: m for m in MODALITIES}
        ),
        checksum=case_id,
        checksums={},
        shape=(8, 8, 8),
        spacing_mm=(1.0, 1.0, 1.0),
        convention="brats-et4" if has_mask else None,
        label_voxels={},
        brain_voxels=1,
    )


@pytest.fixture
def manifest() -> Manifest:
    """Two studies of patient a, one of b and of c, and one of d without a mask."""
    return Manifest(
        data="/data",
        cases=(
            _entry("a1", "a"),
            _entry("a2", "a"),
            _entry("b1", "b"),
            _entry("c1", "c"),
            _entry("d1", "d", has_mask=False),
        ),
        problems=(),
        splits={"train": ("a1", "b1"), "val": ("c1",), "test": ()},
        folds=(("a1", "a2"), ("b1", "c1")),
        seed=0,
    )


def _spec(*patients: str) -> ModelSpec:
    config = RunConfig(recipe="test")
    return ModelSpec(
        config=config, out_channels=3, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="", train_patients=patients
    )


def test_a_package_is_of_either_kind_and_a_segmenter_of_one(tmp_path: Path):
    spec = SuperResSpec(config=mri_tiny(), spacing_mm=(1, 1, 1), manifest_hash="")
    write_superres(tmp_path / "sr", spec, {"psnr": spec.build().state_dict()})
    plain = replace(_spec(), config=RunConfig(recipe="test", net=NetConfig(options={"width": 2, "depth": 1})))
    write_package(tmp_path / "seg", plain, plain.build().state_dict())
    assert open_package(str(tmp_path / "sr"), tmp_path / "1").spec == spec
    assert open_package(str(tmp_path / "seg"), tmp_path / "2").spec == plain
    assert open_labelling(str(tmp_path / "seg"), tmp_path / "3").spec == plain
    with pytest.raises(ModelError, match="belongs to the task superres; expected one of segmentation"):
        open_labelling(str(tmp_path / "sr"), tmp_path / "4")


def test_a_training_may_miss_some_cases_of_a_manifest_but_not_all(manifest: Manifest, tmp_path: Path):
    from glioray.storage import open_storage

    cases = [
        replace(entry, files=replace(entry.files, images={m: f"{entry.case_id}_{m}" for m in MODALITIES}))
        for entry in manifest.cases
    ]
    manifest = replace(manifest, data=str(tmp_path / "data"), cases=tuple(cases))
    manifest.save(open_storage(tmp_path))
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="5 of the 5 cases"):
        open_data(str(tmp_path), "", may_miss=True)
    for modality in MODALITIES:
        (tmp_path / "data" / f"a1_{modality}").touch()
    assert open_data(str(tmp_path), "", may_miss=True) == manifest
    with pytest.raises(DataError, match="4 of the 5 cases"):
        open_data(str(tmp_path), "")


def test_folds(manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from glioray.storage import open_storage

    manifest = replace(manifest, data=str(tmp_path / "data"))
    manifest.save(open_storage(tmp_path))
    with pytest.raises(StorageError, match=r"the cases of the manifest .* lie in .*data', which is gone: "):
        open_data(str(tmp_path), "")
    (tmp_path / "data").mkdir()
    for modality in MODALITIES:
        with pytest.raises(DataError, match=r"5 of the 5 cases of the manifest .*, a1 the first, are no"):
            open_data(str(tmp_path), "")
        (tmp_path / "data" / modality).touch()
    for uri in (str(tmp_path), f"{tmp_path}/manifest.json"):
        assert open_data(uri, "", seed=0) == manifest
    first = open_data(str(tmp_path), "", fold="1")
    assert (first.splits["train"], first.splits["val"]) == (("a1", "a2"), ("b1", "c1"))
    every = open_data(str(tmp_path), "", fold="all")
    assert every.splits == {"train": ("a1", "a2", "b1", "c1"), "val": (), "test": ()}
    for fold, sentence in (
        ("2", "No fold 2 in the manifest; it has 2, numbered from 0"),
        ("x", "--fold is 'x'; use the number of a fold"),
    ):
        with pytest.raises(UsageError, match=sentence):
            open_data(str(tmp_path), "", fold=fold)
    assert capsys.readouterr().err == ""
    replace(manifest, cases=(), splits={}, folds=()).save(open_storage(tmp_path))
    with pytest.raises(
        DataError, match=r"none of the cases in .* can be used; the problems are listed above"
    ):
        open_data(str(tmp_path), "")


@pytest.mark.parametrize(("task", "setting"), [("segmentation", "postprocess"), ("superres", "collapse")])
def test_the_schema_of_a_config(task: str, setting: str):
    schema = Job("train", "A job.", task=task).answer(["--schema"])
    assert setting in schema["properties"]
    assert "description" in next(iter(schema["$defs"].values()))
    with pytest.raises(UsageError, match="unrecognized arguments: --schema"):
        Job("evaluate", "A job.").answer(["--schema"])


@pytest.fixture
def _fd_1_restored() -> Iterator[None]:
    kept = os.dup(1)
    yield
    os.dup2(kept, 1)
    os.close(kept)


@pytest.mark.usefixtures("_fd_1_restored")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("that cannot be; do this"), 2, "error: that cannot be; do this"),
        (TrainingError("it went wrong; do that"), 1, "error: it went wrong; do that"),
        (KeyboardInterrupt(), 130, "error: interrupted; run again with the same --run-name to resume"),
    ],
    ids=["usage", "training", "interrupt"],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", ["job.py"])

    def main() -> dict[str, Any]:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_job(main)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", f"{said}\n")


NOISY = """
import os, subprocess, sys
import glioray.api.train
from glioray.cli.job import run_job

def main():
    print("a library's print")
    os.write(1, b"an extension's write\\n")
    subprocess.run(["echo", "a child's word"], check=True)
    return {"model": "m", "metrics": {"dice": 0.5}, "exit_code": 1}

run_job(main)
"""


@pytest.mark.contracts
def test_stdout_is_the_answer_alone(repo: Path):
    env = {**os.environ, "PYTHONPATH": str(repo / "platform")}
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, timeout=300, env=env)
    assert done.stdout == '{"model": "m", "metrics": {"dice": 0.5}}\n'
    assert done.returncode == 1
    for line in ("a library's print", "an extension's write", "a child's word"):
        assert line in done.stderr


@pytest.mark.contracts
def test_a_dry_run_prints_the_config_as_its_last_line(repo: Path, tmp_path: Path):
    job = repo / "jobs" / "train_unet.py"
    argv = [sys.executable, str(job), "--dry-run", "--recipe", "unet_tiny", "--set", "optim.lr=0.25"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    config = json.loads(line)["config"]
    assert (config["recipe"], config["optim"]["lr"]) == ("unet_tiny", 0.25)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_another_kind_brings_its_own_options():
    config = _config("--net", "unet:depth=2", "--loss", "region_dice_bce", "--optimizer", "adam:lr=0.1")
    # How any network is run is the recipe's, what is the lean U-Net's own is not.
    assert config.net.options == {"stem_stride": 2, "prior": 0.12, "depth": 2}
    assert config.loss.options == {}
    assert (config.optim.name, config.optim.lr) == ("adam", 0.1)
