"""What the jobs share: flags, the config that they resolve to, URIs, and one JSON object on stdout."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glioray import cli, sources
from glioray.cases.casefiles import CaseFiles
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import MODALITIES, OPTIMIZERS, NetConfig, PreprocessConfig
from glioray.errors import DataError, ModelError, TrainingError, UsageError
from glioray.losses import SEGMENTATION_LOSSES
from glioray.nets import SEGMENTATION_NETS
from glioray.resolve import resolve_config, shown_preparation
from glioray.tasks import open_labelling, open_package
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.superres.package import SuperResSpec, write_superres
from glioray.tasks.superres.recipes import mri_tiny

FLAGS = "data storage recipe net loss optimizer run-name workers max-epochs minutes seed experiment fold set dry-run model name out trials concurrent"


def _args(*argv: str) -> argparse.Namespace:
    return cli.parse_flags("A job.", FLAGS, list(argv))


@pytest.mark.parametrize(
    "argv",
    [
        ["--mood", "good"],
        ["--seed", "three"],
        ["--minutes", "soon"],
        ["--workers"],
        ["--max-epoch", "3"],  # no abbreviations: a later flag must not change what a script means
        ["left over"],
    ],
    ids=" ".join,
)
def test_flags_that_are_not_understood_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        _args(*argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err.splitlines()[-1]


def test_flags_of_a_job_of_its_own():
    args = cli.parse_flags("A job.", "data", ["--num-folds", "3"], num_folds={"type": int})
    assert args.num_folds == 3
    assert not hasattr(args, "model")


def test_flags_override_the_recipe():
    config = resolve_config(_args("--recipe", "unet_tiny", "--seed", "7", "--workers", "2", "--minutes", "3"))
    assert config.recipe == "unet_tiny"
    assert (config.train.seed, config.train.num_workers, config.train.minutes) == (7, 2, 3.0)
    assert config.train.max_epochs == build_recipe("unet_tiny").train.max_epochs


def test_max_epochs_alone_switches_the_recipes_minutes_off():
    recipe = build_recipe("unet_small")
    assert recipe.train.minutes is not None
    assert resolve_config(_args()).train == recipe.train
    assert resolve_config(_args("--max-epochs", "2")).train == recipe.train.replace(
        max_epochs=2, minutes=None
    )
    both = resolve_config(_args("--max-epochs", "2", "--minutes", "5")).train
    assert (both.max_epochs, both.minutes) == (2, 5.0)


def test_the_recipe_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert resolve_config(_args()).recipe == "unet_small"
    monkeypatch.setenv("GLIORAY_RECIPE", "unet_tiny")
    assert resolve_config(_args()).recipe == "unet_tiny"
    assert resolve_config(_args("--data", "elsewhere")).recipe == "unet_small"
    assert resolve_config(_args("--recipe", "unet_brats")).recipe == "unet_brats"


@pytest.mark.parametrize("recipe", ["unet_tiny", "unet_small"])
def test_every_name_of_a_registry_is_a_value_of_its_flag(recipe: str):
    for name in SEGMENTATION_NETS:
        assert resolve_config(_args("--recipe", recipe, "--net", name)).net.name == name
    for name in SEGMENTATION_LOSSES:
        assert resolve_config(_args("--recipe", recipe, "--loss", name)).loss.name == name
    for name in OPTIMIZERS:
        assert resolve_config(_args("--recipe", recipe, "--optimizer", name)).optim.name == name


def test_options_may_be_lists():
    config = resolve_config(
        _args(
            *("--net", "resenc:blocks=[1, 2,1],width=8", "--loss", "ce:class_weights=[1,2,2,3]"),
        )
    )
    assert config.net.options == {"stem_stride": 2, "prior": 0.12, "blocks": [1, 2, 1], "width": 8}
    assert config.loss.options == {"class_weights": [1, 2, 2, 3]}


def test_set_takes_json_and_plain_words():
    config = resolve_config(
        _args(
            *("--set", "optim.lr=1e-3", "--set", "train.precision=fp32", "--set", "preprocess.size=[64, 96]"),
            *("--set", 'preprocess.planes=["coronal"]', "--set", "sample.foreground_share=null"),
            *("--set", "net.options.width=8", "--set", "net.options.norm=instance", "--set", "optim.ema=0"),
        )
    )
    assert (config.optim.lr, config.optim.ema, config.train.precision) == (1e-3, 0.0, "fp32")
    assert (config.preprocess.size, config.preprocess.planes) == ((64, 96), ("coronal",))
    assert config.sample.foreground_share is None
    assert (config.net.options["width"], config.net.options["norm"]) == (8, "instance")


def test_set_goes_together_with_flags():
    config = resolve_config(_args("--workers", "3", "--set", "train.batch_size=12"))
    assert (config.train.num_workers, config.train.batch_size) == (3, 12)
    timed = resolve_config(_args("--max-epochs", "2", "--set", "train.minutes=4"))
    assert (timed.train.max_epochs, timed.train.minutes) == (2, 4.0)
    assert resolve_config(_args("--set", "train.minutes=null")).train.minutes is None


def test_the_preparation_that_a_report_shows():
    def shown(*argv: str) -> PreprocessConfig | None:
        return shown_preparation(
            cli.parse_flags("", "recipe set", list(argv), report={"action": "store_true"})
        )

    assert shown() is None
    assert shown("--report") is None
    assert shown("--report", "--recipe", "unet_brats") == build_recipe("unet_brats").preprocess
    config = shown("--report", "--set", "preprocess.clahe=0.02")
    assert config == build_recipe("unet_small").preprocess.replace(clahe=0.02)
    with pytest.raises(
        UsageError, match="--recipe and --set say whose preparation --report shows; give --report too"
    ):
        shown("--set", "preprocess.n4=true")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--recipe", "unet_huge"], "'unet_huge' is not a recipe; the recipes are "),
        (["--set", "optim.lr"], "--set optim.lr has no '='; write it as optim.lr=0.001"),
        (["--set", "optim.speed=1"], "no setting 'optim.speed'; optim has name, lr, "),
        (["--set", "optim.lr.x=1"], "no setting 'optim.lr.x'; optim.lr is "),
        (["--set", "optim.lr=fast"], "optim.lr is 'fast'; expected a number above 0 and at most 10"),
        (["--set", "optim.lr=NaN"], "optim.lr is nan; expected a number above 0"),
        (["--workers", "3"], "train.batch_size is 16; expected a multiple of the 3 workers"),
        (["--workers", "0"], "train.num_workers is 0; expected at least 1"),
        (["--minutes", "0"], "train.minutes is 0.0; expected None or above 0"),
        (["--max-epochs", "-1"], "train.max_epochs is -1; expected at least 1"),
        (["--set", "net.name=resnet9000"], "'resnet9000' is not a network; the networks are "),
        (["--set", "net.options.girth=3"], "network 'unet' does not take these options: "),
        (["--set", "net.options.width=wide"], "network 'unet' does not take these options: "),
        (["--set", "net.options.depth=9"], "width 32, depth 9: expected width from 1"),
        (["--set", "loss.name=hinge"], "loss.name is 'hinge'; expected one of boundary, ce, "),
        (["--set", "loss.options.gamma=2"], "loss 'region_dice_bce' does not take these options: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_configs_that_cannot_be(argv: list[str], sentence: str):
    with pytest.raises(UsageError) as caught:
        resolve_config(_args(*argv))
    assert str(caught.value).startswith(sentence)


def test_what_was_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for call, sentence in (
        (
            cli.data_uri,
            "no data were named; give --data with a folder or s3://bucket/prefix, or set GLIORAY_DATA",
        ),
        (cli.out_uri, "there is no place for the results; give --out with a folder or s3://bucket/prefix"),
        (
            lambda args: sources.open_model(args, tmp_path),
            "no model was named; give --model, such as models:/",
        ),
        (
            sources.registered_version,
            "no model was named; give --model, such as models:/glioray-unet/3 or runs:/",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            call(_args())
        assert str(caught.value).startswith(sentence)
    monkeypatch.setenv("GLIORAY_DATA", "s3://bucket/data/")
    assert cli.data_uri(_args()) == "s3://bucket/data"
    assert cli.data_uri(_args("--data", "s3://other")) == "s3://other"
    with pytest.raises(
        UsageError, match=r"'/a/folder' is no registered model; give models:/NAME/VERSION or runs:"
    ):
        sources.registered_version(_args("--model", "/a/folder"))


def test_relative_folders_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert cli.absolute_uri("data", "--data") == str(tmp_path / "data")
    assert cli.absolute_uri("s3://bucket/data/", "--data") == "s3://bucket/data"
    monkeypatch.setenv("GLIORAY_STORAGE", "runs")
    assert cli.storage_uri(_args()) == str(tmp_path / "runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GLIORAY_STORAGE")
    assert cli.storage_uri(_args()) == str(tmp_path / "glioray")


def test_relative_folders_are_refused_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shipped = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(shipped))
    for uri in ("data", "file://data", "./data"):
        with pytest.raises(
            UsageError, match=r"--out is the relative folder '.*data', which a submitted job would"
        ):
            cli.absolute_uri(uri, "--out")
    assert cli.absolute_uri(str(tmp_path), "--out") == str(tmp_path)
    assert cli.absolute_uri(f"file://{tmp_path}", "--out") == str(tmp_path)
    assert cli.absolute_uri("~/data", "--out") == str(Path("~/data").expanduser())
    assert cli.absolute_uri("s3://bucket", "--out") == "s3://bucket"
    # A job that brings no folder of its own runs where it was told to.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    assert cli.absolute_uri("data", "--out") == str(Path("data").absolute())


@pytest.mark.parametrize("name", ["a/b", "..", "", "-", "a b", "é?"])
def test_run_names_that_are_no_folders(name: str):
    config = RunConfig(recipe="unet_tiny")
    if name:
        with pytest.raises(UsageError, match=r"--run-name is '.*'; use letters, digits"):
            cli.default_run_name(_args("--run-name", name), config)
    else:
        assert cli.default_run_name(_args(), config).startswith("unet_tiny-2")
    assert cli.default_run_name(_args("--run-name", "a-1_b.2"), config) == "a-1_b.2"


def test_numbers_of_trials():
    cli.check_counts(_args("--trials", "1", "--concurrent", "2"), "trials concurrent")
    for flag in ("--trials", "--concurrent"):
        with pytest.raises(UsageError, match=f"{flag} is 0; expected at least 1"):
            cli.check_counts(_args(flag, "0"), "trials concurrent")


def test_tracking_without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert cli.tracking_address("s3://bucket") == "http://server:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set; point it at your MLflow server"):
        cli.tracking_address("s3://bucket")
    address = cli.tracking_address(str(tmp_path / "runs"))
    assert address == f"sqlite:///{tmp_path}/runs/mlflow.db" == os.environ["MLFLOW_TRACKING_URI"]
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


def _ids(entries: list[CaseEntry]) -> list[str]:
    return [entry.case_id for entry in entries]


def test_a_package_is_of_either_kind_and_a_segmenter_of_one(tmp_path: Path):
    spec = SuperResSpec(config=mri_tiny(), spacing_mm=(1, 1, 1), manifest_hash="")
    write_superres(tmp_path / "sr", spec, {"psnr": spec.build().state_dict()})
    plain = replace(_spec(), config=RunConfig(recipe="test", net=NetConfig(options={"width": 2, "depth": 1})))
    write_package(tmp_path / "seg", plain, plain.build().state_dict())
    assert open_package(str(tmp_path / "sr"), tmp_path / "1").spec == spec
    assert open_package(str(tmp_path / "seg"), tmp_path / "2").spec == plain
    assert open_labelling(str(tmp_path / "seg"), tmp_path / "3").spec == plain
    with pytest.raises(ModelError, match="belongs to the task superres; expected one of segmentation"):
        sources.open_model(_args("--model", str(tmp_path / "sr")), tmp_path / "4")


def test_folds(manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from glioray.storage import open_storage

    manifest.save(open_storage(tmp_path))
    for uri in (str(tmp_path), f"{tmp_path}/manifest.json"):
        assert sources.open_data(uri, "", seed=0) == manifest
    first = sources.open_data(str(tmp_path), "", fold="1")
    assert (first.splits["train"], first.splits["val"]) == (("a1", "a2"), ("b1", "c1"))
    every = sources.open_data(str(tmp_path), "", fold="all")
    assert every.splits == {"train": ("a1", "a2", "b1", "c1"), "val": (), "test": ()}
    for fold, sentence in (
        ("2", "No fold 2 in the manifest; it has 2, numbered from 0"),
        ("x", "--fold is 'x'; use a number"),
    ):
        with pytest.raises(UsageError, match=sentence):
            sources.open_data(str(tmp_path), "", fold=fold)
    assert capsys.readouterr().err == ""
    replace(manifest, cases=(), splits={}, folds=()).save(open_storage(tmp_path))
    with pytest.raises(
        DataError, match=r"none of the cases in .* can be used; the problems are listed above"
    ):
        sources.open_data(str(tmp_path), "")


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
        (KeyboardInterrupt(), 130, "error: interrupted; run again with the same --run-name to go on"),
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
        cli.run_job(main)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", f"{said}\n")


NOISY = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from glioray import cli, sources

def main():
    print("a library's print")
    os.write(1, b"an extension's write\\n")
    subprocess.run(["echo", "a child's word"], check=True)
    return {"model": "m", "metrics": {"dice": 0.5}, "exit_code": 1}

cli.run_job(main)
"""


def test_stdout_is_the_answer_alone(repo: Path):
    done = subprocess.run(
        [sys.executable, "-c", NOISY, str(repo / "platform")], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == '{"model": "m", "metrics": {"dice": 0.5}}\n'
    assert done.returncode == 1
    for line in ("a library's print", "an extension's write", "a child's word"):
        assert line in done.stderr


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
    config = resolve_config(
        _args("--net", "unet:depth=2", "--loss", "region_dice_bce", "--optimizer", "adam:lr=0.1")
    )
    # How any network is run is the recipe's, what is the lean U-Net's own is not.
    assert config.net.options == {"stem_stride": 2, "prior": 0.12, "depth": 2}
    assert config.loss.options == {}
    assert (config.optim.name, config.optim.lr) == ("adam", 0.1)
