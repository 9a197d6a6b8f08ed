"""Which precision is chosen, by steps whose times are given."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.config import with_settings
from glioray.engine import precision as module
from glioray.engine.on_ray.agreement import PRECISION_FILE, Decisions, agree_on_precision
from glioray.engine.precision import choose_precision
from glioray.tasks.segmentation.recipes import build_recipe

CPU = torch.device("cpu")


class Timed:
    """Steps that take given times, and the clock that shows them."""

    def __init__(self, fp32: float, bf16: float) -> None:
        self.seconds = {"fp32": fp32, "bf16": bf16}
        self.now = 0.0
        self.taken: list[str] = []

    def step(self, precision: str) -> None:
        # The first step of each takes long, as it builds what later ones reuse.
        self.now += self.seconds[precision] * (1 if precision in self.taken else 50)
        self.taken.append(precision)
        torch.rand(3)

    def clock(self) -> float:
        return self.now

    def choose(self, setting: str = "auto", **changes: Any) -> str:
        facts = {"work": "training", "identity": ["unet", [16, 4, 192, 160]], **changes}
        return choose_precision(setting, CPU, self.step, clock=self.clock, **facts)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GLIORAY_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "has_bf16", lambda device: True)
    threads = torch.get_num_threads()
    yield tmp_path / "precision"
    torch.set_num_threads(threads)


def test_the_faster_one_is_chosen_and_float32_unless_bf16_gains():
    cases = (
        (1.0, 0.6, "bf16"),
        (1.0, 1.45, "fp32"),
        (1.0, 1.0, "fp32"),
        (1.0, 0.97, "fp32"),
        (1.0, 0.9, "bf16"),
    )
    for number, (fp32, bf16, expected) in enumerate(cases):
        timed = Timed(fp32, bf16)
        assert timed.choose(identity=number) == expected, (fp32, bf16)
        assert timed.taken == ["fp32", "bf16"] * 4


def test_a_result_is_kept_for_a_machine_a_network_a_size_and_a_number_of_threads(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "glioray")
    assert Timed(1.0, 0.5).choose() == "bf16"
    again = Timed(0.5, 1.0)
    assert again.choose() == "bf16"
    assert again.taken == []
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"precision of training: bf16, {source} (a step takes 1.000 s in fp32, 0.500 s in bf16)"
        for source in ("timed now", "as timed before")
    ]
    for changes in ({"work": "prediction"}, {"identity": ["unet", [8, 4, 192, 160]]}):
        assert Timed(0.5, 1.0).choose(**changes) == "fp32"
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert Timed(0.5, 1.0).choose() == "fp32"
    monkeypatch.setattr(module, "_machine", lambda: ["another"])
    assert Timed(0.4, 1.0).choose() == "fp32"
    assert len(list(cache.iterdir())) == 5


def test_what_is_set_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    timed = Timed(1.0, 0.1)
    assert [timed.choose(setting) for setting in ("fp32", "bf16")] == ["fp32", "bf16"]
    monkeypatch.setattr(module, "has_bf16", lambda device: False)
    assert timed.choose() == "fp32"
    monkeypatch.setattr(module, "has_bf16", lambda device: True)
    gpu = choose_precision("auto", torch.device("cuda"), timed.step, work="training", identity=1)
    assert gpu == "bf16"
    assert timed.taken == []


def test_timing_draws_no_random_numbers_and_a_damaged_result_is_timed_again(cache: Path):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    Timed(1.0, 0.5).choose()
    assert torch.equal(torch.rand(2), expected)
    (path,) = cache.iterdir()
    for text in ("", "{", json.dumps({"fp32": 1.0}), json.dumps([1])):
        path.write_text(text)
        assert Timed(0.5, 1.0).choose() == "fp32"


def test_all_ranks_take_the_first_one_s_result(monkeypatch: pytest.MonkeyPatch, cache: Path):
    """On the second of two ranks, of which the first has other times."""

    def ranks(first: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
        return lambda value: [first(value), value]

    monkeypatch.setattr(module, "is_first_rank", lambda: False)
    # It measures with the others, since a step may need them, and keeps its own times.
    monkeypatch.setattr(module, "gather", ranks(lambda own: own and {"fp32": 1.0, "bf16": 0.5}))
    timed = Timed(0.5, 1.0)
    assert timed.choose(shared=True) == "bf16"
    assert timed.taken == ["fp32", "bf16"] * 4
    assert [json.loads(path.read_text()) for path in cache.iterdir()] == [{"fp32": 0.5, "bf16": 1.0}]
    # What the first one remembers nobody measures.
    monkeypatch.setattr(module, "gather", ranks(lambda own: {"fp32": 1.0, "bf16": 0.5}))
    timed = Timed(0.5, 1.0)
    assert timed.choose(shared=True, identity="other") == "bf16"
    assert timed.taken == []


def test_ranks_take_bf16_only_if_all_have_it(monkeypatch: pytest.MonkeyPatch):
    """Each asks the others before it decides: one that did not would leave them waiting."""
    asked: list[Any] = []

    def gather(value: Any) -> list[Any]:
        asked.append(value)
        return [True, False]

    monkeypatch.setattr(module, "gather", gather)
    for own in (True, False):
        monkeypatch.setattr(module, "has_bf16", lambda device, own=own: own)
        timed = Timed(1.0, 0.5)
        assert timed.choose(shared=True) == "fp32"
        assert timed.taken == []
    assert asked == [True, False]


def test_runs_that_are_compared_have_the_precision_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "glioray")
    uri = str(tmp_path / "search")
    assert Timed(1.0, 0.5).choose(agree=Decisions(uri).decide) == "bf16"

    # A later one, of a resumed search and of another size, times nothing.
    later = Timed(0.5, 1.0)
    assert later.choose(agree=Decisions(uri).decide, identity="larger") == "bf16"
    assert later.taken == []
    assert "bf16, as the runs have that this one is compared with" in caplog.text
    assert "no instructions" not in caplog.text

    # What a user sets is no matter of agreement, and other work is decided by itself.
    assert later.choose("fp32", agree=Decisions(uri).decide) == "fp32"
    assert Timed(0.5, 1.0).choose(agree=Decisions(uri).decide, work="prediction") == "fp32"
    kept = json.loads((tmp_path / "search" / PRECISION_FILE).read_text())
    assert kept == {"training": "bf16", "prediction": "fp32"}
    monkeypatch.setattr(module, "has_bf16", lambda device: False)
    assert Timed(0.5, 1.0).choose(agree=Decisions(uri).decide) == "bf16"
    assert "no instructions for bf16" in caplog.text


def test_of_runs_that_time_at_once_all_take_the_first_answer(tmp_path: Path):
    decisions = Decisions(str(tmp_path / "search"))
    chosen: list[str] = []

    def agree(work: str, own: str | None) -> str | None:
        if own is not None:
            # The other one has timed meanwhile.
            chosen.append(Timed(0.5, 1.0).choose(agree=decisions.decide, identity="other"))
        return decisions.decide(work, own)

    assert Timed(1.0, 0.5).choose(agree=agree) == "fp32"
    assert chosen == ["fp32"]


def test_of_ranks_the_first_alone_asks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_first_rank", lambda: False)
    monkeypatch.setattr(module, "gather", lambda value: ["bf16", value])
    timed = Timed(0.5, 1.0)
    assert timed.choose(shared=True, agree=lambda *args: pytest.fail("it asked")) == "bf16"
    assert timed.taken == []


def test_nothing_is_agreed_where_every_run_has_its_precision_set():
    configs = [
        with_settings(build_recipe("unet_tiny"), {"train.precision": name}) for name in ("fp32", "bf16")
    ]
    assert agree_on_precision("s3://nowhere/at-all", configs) is None


def test_a_cache_that_cannot_be_written_is_said_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLIORAY_CACHE", str(tmp_path / "file"))
    caplog.set_level(logging.WARNING, "glioray")
    assert Timed(1.0, 0.5).choose() == "bf16"
    assert "cannot keep which precision is faster" in caplog.text
