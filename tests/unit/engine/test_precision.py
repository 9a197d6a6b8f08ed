"""Which precision is chosen, by steps whose times are given."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.engine import precision as module
from glioray.engine.precision import choose_precision

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


def test_a_cache_that_cannot_be_written_is_said_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLIORAY_CACHE", str(tmp_path / "file"))
    caplog.set_level(logging.WARNING, "glioray")
    assert Timed(1.0, 0.5).choose() == "bf16"
    assert "cannot keep which precision is faster" in caplog.text
