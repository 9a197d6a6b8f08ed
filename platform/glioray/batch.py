"""Whole data sets judged and segmented: the model loaded once a worker, the cases spread by Ray Data."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from glioray.cases.labels import CONVENTIONS, detect_convention, from_internal
from glioray.cases.layouts import CaseFiles
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry
from glioray.cases.nifti import encode_map, encode_mask
from glioray.cluster import log_to_stderr, share_of
from glioray.errors import GliorayError
from glioray.inference.evaluate import CaseFigures, evaluate_case
from glioray.inference.package import SPEC_FILE, WEIGHTS_FILE
from glioray.inference.predictor import Predictor, uncertainty
from glioray.metrics.slicewise import SliceSums
from glioray.plain import from_dict, to_dict
from glioray.slices.pipeline import quiet_data
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)


def evaluate_cases(
    package: Path, data: str, entries: Sequence[CaseEntry]
) -> tuple[dict[str, CaseFigures], dict[str, SliceSums], dict[str, str]]:
    """Each case's figures by region and its sums over slices, and why the others could not be judged."""
    answers = list(
        _map_cases(
            package, [entry.files for entry in entries], partial(_evaluate, data, _conventions(entries))
        )
    )
    cases, failed = _parted(answers, "figures")
    return cases, _parted(answers, "slices")[0], failed


def predict_cases(
    package: Path,
    data: str,
    cases: Sequence[CaseFiles],
    out: str,
    *,
    labels: str | None = None,
    with_uncertainty: bool = False,
) -> tuple[dict[str, str], dict[str, str]]:
    """Write `<out>/<case>_seg.nii.gz` for each case; the URIs of the masks, and why the others have none.

    Args:
        package: the model.
        data: the URI below which the cases lie.
        cases: their objects.
        out: a folder or `s3://` URI.
        labels: the masks' label convention; by default that of the case's mask or else of its layout.
        with_uncertainty: write `<out>/<case>_uncertainty.nii.gz` too (see `predictor.uncertainty`).
    """
    answers = list(_map_cases(package, cases, partial(_predict, data, out, labels, with_uncertainty)))
    return _parted(answers, "mask")


def _conventions(entries: Sequence[CaseEntry]) -> dict[str, str | None]:
    return {entry.case_id: entry.convention for entry in entries}


def _parted(answers: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], dict[str, str]]:
    answers.sort(key=lambda answer: answer["case_id"])
    good = {answer["case_id"]: answer[name] for answer in answers if name in answer}
    return good, {answer["case_id"]: answer["error"] for answer in answers if "error" in answer}


def _evaluate(
    data: str, conventions: dict[str, str | None], predictor: Predictor, files: CaseFiles
) -> dict[str, Any]:
    name = conventions[files.case_id]
    case = load_case(open_storage(data), files, convention=None if name is None else CONVENTIONS[name])
    figures, slices = evaluate_case(predictor, case)
    return {"figures": figures, "slices": slices}


def _predict(
    data: str,
    out: str,
    labels: str | None,
    with_uncertainty: bool,
    predictor: Predictor,
    files: CaseFiles,
) -> dict[str, Any]:
    storage = open_storage(data)
    # The numbers of the case's own mask where it has one: what its owner's tools expect. Where they are stated,
    # the mask is not read, and a case that would be cut to its segmented slices is predicted whole.
    stated = labels or files.declared
    case = load_case(storage, files, with_mask=stated is None)
    convention = CONVENTIONS[stated] if stated else case.convention or detect_convention(set(), files.layout)
    probs = predictor.probs(case)
    mask = from_internal(predictor.decode(probs, float(np.prod(case.spacing_mm)) / 1000), convention)
    target = open_storage(out)
    if with_uncertainty:
        doubt = uncertainty(probs, predictor.spec.config.loss.target, predictor.spec.regions)
        target.write(f"{files.case_id}_uncertainty.nii.gz", encode_map(doubt, like=case.reference))
    # Last: where a mask is, all is there.
    key = f"{files.case_id}_seg.nii.gz"
    target.write(key, encode_mask(mask, like=case.reference))
    return {"mask": join_uri(target.uri, key)}


CaseWork = Callable[[Predictor, CaseFiles], dict[str, Any]]
"""What is done with a case in a worker; returns plain JSON values."""


def _map_cases(package: Path, cases: Sequence[CaseFiles], work: CaseWork) -> Iterator[dict[str, Any]]:
    """`work` on every case, with the model loaded once a worker, all over the cluster, in the order they end.

    A case that fails gives {"case_id", "error"} and the others go on.
    """
    files = {name: (package / name).read_bytes() for name in (WEIGHTS_FILE, SPEC_FILE)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    # A CPU predictor fills a node's cores by itself, and memory is what several of them would lack.
    num_workers = max(1, min(len(cases), num_gpus or sum(node.get("CPU", 0) >= 1 for node in nodes)))
    share = share_of(num_workers)
    rows = [json.dumps(to_dict(case)) for case in cases]
    quiet_data()
    # Ray's own hints leave out classes with arguments.
    worker: Any = _CaseWorker
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map(
        worker,
        fn_constructor_args=(ray.put(files), work, share.num_threads),
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus or None,
    )
    for number, row in enumerate(dataset.iter_rows(), 1):
        answer: dict[str, Any] = json.loads(row["answer"])
        failed = f" failed: {answer['error']}" if "error" in answer else ""
        _log.info("case %d/%d: %s%s", number, len(cases), answer["case_id"], failed)
        yield answer


class _CaseWorker:
    def __init__(self, files: Any, work: CaseWork, num_threads: int) -> None:
        log_to_stderr()
        torch.set_num_threads(num_threads)
        if isinstance(files, ray.ObjectRef):
            files = ray.get(files)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            self.predictor = Predictor.load(Path(folder))
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        files = from_dict(CaseFiles, json.loads(row["item"]))
        try:
            answer = self.work(self.predictor, files)
        except GliorayError as error:
            answer = {"error": str(error)}
        return {"answer": json.dumps({"case_id": files.case_id, **answer})}
