"""What each verb can be asked for, as keyword arguments of the library and as flags."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import glioray
from glioray.api import requests
from glioray.cli import Job
from glioray.errors import UsageError

VERBS = ("calibrate", "compare", "ensemble", "evaluate", "predict", "prepare", "promote", "train", "tune")


def _type(verb: str) -> Any:
    return getattr(requests, f"{verb.title()}Request")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_the_fields_of_its_request(verb: str):
    function, request_type = getattr(glioray, verb), _type(verb)
    parameters = inspect.signature(function).parameters
    assert list(parameters) == list(request_type.model_fields)
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    for name, field in request_type.model_fields.items():
        assert field.description, f"{verb}: {name} has no description"
        assert f"    {name}: {field.description}." in function.__doc__
    for section in ("Returns:", "Raises:"):
        assert section in function.__doc__


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_is_a_flag(verb: str, capsys: pytest.CaptureFixture[str]):
    assert Job(verb, "A job.").parse(["--help"]) is None
    text = capsys.readouterr().out
    for name in _type(verb).model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "--dry-run" in text
    assert Job(verb, "A job.").parse([]) is not None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"recpie": "unet_tiny"}, "no setting 'recpie'; did you mean recipe?"),
        ({"workers": "3:"}, "workers is '3:'; expected a number of at least 1, or two such as 2:8"),
        ({"workers": 0}, "workers is 0; expected a number of at least 1, or two such as 2:8"),
        ({"workers": "4:2"}, "workers is '4:2'; expected a number of at least 1, or two such as 2:8"),
        (
            {"workers": "2:4", "recipe": "unet_tiny"},
            "--workers 2:4 may mean 3 workers, which cannot share a batch of 8 equally; .* multiple of 12",
        ),
        ({"seed": "3"}, "seed is '3'; expected None or a whole number"),
        ({"recipe": "unet_tiny", "minutes": float("nan")}, "minutes is nan; expected None or a number"),
        (
            {"recipe": "unet_tinny"},
            "no recipe 'unet_tinny'; the recipes are unet_tiny, .* did you mean unet_tiny?",
        ),
        ({}, "no recipe given; give --recipe, such as unet_small, or --task"),
        ({"task": "detection"}, "no task 'detection'; choose from segmentation, superres"),
        ({"task": "superres", "recipe": "unet_tiny"}, "no recipe 'unet_tiny' of the task superres"),
        (
            {"recipe": "mri_tiny", "net": "unetpp"},
            "--net is for the task segmentation, but the recipe mri_tiny belongs to superres; leave --net out",
        ),
        ({"recipe": "unet_tiny", "set": {"optim.lr": -1}}, "optim.lr is -1; expected above 0"),
        ({"recipe": "unet_tiny"}, "no data given; give --data"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_carried_out_starts_nothing(
    fields: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("glioray.api.train.connect", lambda: pytest.fail("Ray was started"))
    with pytest.raises(UsageError, match=sentence):
        glioray.train(**fields)
    assert capsys.readouterr().out == ""


def test_places_may_be_paths(tmp_path: Path):
    request = requests.PredictRequest.of(model=tmp_path / "run", data=tmp_path, out=tmp_path / "masks")
    assert (request.model, request.out) == (f"{tmp_path}/run", f"{tmp_path}/masks")
    assert requests.EnsembleRequest.of(model=[tmp_path, "b"]).model == (str(tmp_path), "b")


def test_requests_are_frozen():
    request = requests.TrainRequest.of(recipe="unet_tiny")
    with pytest.raises(ValueError, match="frozen"):
        request.recipe = "unet_small"


IMPORTS = """
import json, sys
import glioray
from glioray.cli import Job
if len(sys.argv) > 1:
    Job("train", "A job.", task="segmentation").parse(sys.argv[1:])
print(json.dumps(sorted({"torch", "ray", "mlflow", "numpy"} & set(sys.modules))))
"""


@pytest.mark.contracts
def test_neither_the_import_nor_help_loads_what_is_heavy(repo: Path):
    def loaded(*flags: str) -> list[str]:
        argv = [sys.executable, "-c", IMPORTS, *flags]
        env = {**os.environ, "PYTHONPATH": str(repo / "platform")}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env)
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
        return found

    assert loaded() == []
    assert loaded("--help") == []


def test_the_library_has_what_it_lists():
    for name in glioray.__all__:
        assert getattr(glioray, name) is not None
    assert set(glioray.__all__) <= set(dir(glioray))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = glioray.trian
