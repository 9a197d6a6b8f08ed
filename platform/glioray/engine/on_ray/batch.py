"""Whole data sets judged and segmented: the model loaded once a worker, the cases spread by Ray Data."""

from __future__ import annotations

import base64
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from glioray.cases.labels import CONVENTIONS, detect_convention, from_internal
from glioray.cases.layouts import CaseFiles
from glioray.cases.load import Case, load_case
from glioray.cases.manifest import CaseEntry
from glioray.cases.nifti import encode_map, encode_mask
from glioray.engine.on_ray.connect import log_to_stderr, worker_resources
from glioray.engine.on_ray.data import quiet_data
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.errors import GliorayError
from glioray.serialization import from_dict, to_dict
from glioray.storage import join_uri, open_storage
from glioray.tasks.segmentation.case_metrics import CaseFigures, evaluate_case
from glioray.tasks.segmentation.predictor import Predictor, uncertainty
from glioray.tasks.segmentation.slicewise import SliceSums
from glioray.tasks.superres.case_metrics import evaluate_superres_case
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.features import judge_extractor
from glioray.tasks.superres.figures import PanelRow, panel_figure
from glioray.tasks.superres.lpips import Lpips
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import parse_superres

_log = logging.getLogger(__name__)


def evaluate_cases(
    package: Path, data: str, entries: Sequence[CaseEntry]
) -> tuple[dict[str, CaseFigures], dict[str, SliceSums], dict[str, str]]:
    """Each case's figures by region and its sums over slices, and why the others could not be judged."""
    files = [entry.files for entry in entries]
    work = partial(_evaluate, data, _conventions(entries))
    answers = list(_map_cases({_MODEL: package}, _load_predictor, files, work))
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
    work = partial(_predict, data, out, labels, with_uncertainty)
    answers = list(_map_cases({_MODEL: package}, _load_predictor, cases, work))
    return _parted(answers, "mask")


def evaluate_superres_cases(
    package: Path,
    segmenter: Path | None,
    data: str,
    entries: Sequence[CaseEntry],
    *,
    judge: GanConfig | None = None,
) -> SuperResJudgement:
    """A super-resolution model judged on cases: by their images, and by a frozen segmenter on those with a mask.

    Args:
        package: the super-resolution model.
        segmenter: a segmentation model, or None to judge by images alone.
        data: the URI below which the cases lie.
        entries: the cases.
        judge: the run whose perceptual distance judges, where that is not the model's own.

    Raises:
        UsageError: the extractor that it names cannot be had.
    """
    if judge is None:
        judge = parse_superres((package / SPEC_FILE).read_bytes()).config
    judge_extractor(judge)  # here, in a sentence, rather than by the death of workers
    packages = {_MODEL: package, **({} if segmenter is None else {_SEGMENTER: segmenter})}
    files = [entry.files for entry in entries]
    work = partial(_evaluate_superres, data, _conventions(entries))
    answers = list(_map_cases(packages, partial(_load_resolver, judge), files, work))
    images, failed = _parted(answers, "images")
    use = {case_id: figures for case_id, figures in _parted(answers, "use")[0].items() if figures}
    pictures = _parted(answers, "picture")[0]
    return SuperResJudgement(
        images=images,
        use=use,
        pictures={case_id: base64.b64decode(picture) for case_id, picture in pictures.items()},
        failed=failed,
        judge=next((answer["judge"] for answer in answers if "judge" in answer), ""),
    )


@dataclass(frozen=True, kw_only=True)
class SuperResJudgement:
    """What is said of a super-resolution model.

    Attributes:
        images: each case's figures by modality, and "mean" over them.
        use: the Dice of those cases that a segmenter judged, by region (`SuperResFigures.use`).
        pictures: of each case, as PNG.
        failed: the other cases, and why.
        judge: the perceptual distance, such as "lpips_alexnet"; "hfen" where there is no extractor.
    """

    images: dict[str, CaseFigures]
    use: dict[str, CaseFigures]
    pictures: dict[str, bytes]
    failed: dict[str, str]
    judge: str


def _conventions(entries: Sequence[CaseEntry]) -> dict[str, str | None]:
    return {entry.case_id: entry.convention for entry in entries}


def _parted(answers: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], dict[str, str]]:
    answers.sort(key=lambda answer: answer["case_id"])
    good = {answer["case_id"]: answer[name] for answer in answers if name in answer}
    return good, {answer["case_id"]: answer["error"] for answer in answers if "error" in answer}


def _evaluate(
    data: str, conventions: dict[str, str | None], predictor: Predictor, files: CaseFiles
) -> dict[str, Any]:
    figures, slices = evaluate_case(predictor, _load(data, conventions, files))
    return {"figures": figures, "slices": slices}


def _load(data: str, conventions: dict[str, str | None], files: CaseFiles) -> Case:
    name = conventions[files.case_id]
    return load_case(open_storage(data), files, convention=None if name is None else CONVENTIONS[name])


def _evaluate_superres(
    data: str, conventions: dict[str, str | None], models: SuperResModels, files: CaseFiles
) -> dict[str, Any]:
    resolver, segmenter, lpips = models
    found = evaluate_superres_case(
        resolver, _load(data, conventions, files), segmenter=segmenter, lpips=lpips
    )
    picture = io.BytesIO()
    panel_figure([PanelRow(**row) for row in found.shown]).savefig(picture, format="png", dpi=80)
    return {
        "images": found.images,
        "use": found.use,
        "picture": base64.b64encode(picture.getvalue()).decode(),
        "judge": "hfen" if lpips is None else lpips.name,
    }


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


_MODEL, _SEGMENTER = "model", "segmenter"

Load = Callable[[Mapping[str, Path]], Any]
"""What loads the models of a worker, from the folder of each by its name."""

CaseWork = Callable[[Any, CaseFiles], dict[str, Any]]
"""What is done with a case in a worker, by what `Load` loaded; returns plain JSON values."""

SuperResModels = tuple[SuperResolver, Predictor | None, Lpips | None]


def _load_predictor(folders: Mapping[str, Path]) -> Predictor:
    return Predictor.load(folders[_MODEL])


def _load_resolver(judge: GanConfig, folders: Mapping[str, Path]) -> SuperResModels:
    resolver = SuperResolver.load(folders[_MODEL])
    segmenter = Predictor.load(folders[_SEGMENTER]) if _SEGMENTER in folders else None
    extractor = judge_extractor(judge)
    return resolver, segmenter, None if extractor is None else Lpips(extractor).to(resolver.device)


def _map_cases(
    packages: Mapping[str, Path], load: Load, cases: Sequence[CaseFiles], work: CaseWork
) -> Iterator[dict[str, Any]]:
    """`work` on every case, with the models loaded once a worker, all over the cluster, in the order they end.

    A case that fails gives {"case_id", "error"} and the others go on.

    Args:
        packages: the models' folders, by the names that `load` knows them by.
        load: makes of them what `work` works with.
        cases: the cases' objects.
        work: on one case.
    """
    files = {
        f"{name}/{file}": (package / file).read_bytes()
        for name, package in packages.items()
        for file in (WEIGHTS_FILE, SPEC_FILE)
    }
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    # A CPU predictor fills a node's cores by itself, and memory is what several of them would lack.
    num_workers = max(1, min(len(cases), num_gpus or sum(node.get("CPU", 0) >= 1 for node in nodes)))
    share = worker_resources(num_workers)
    rows = [json.dumps(to_dict(case)) for case in cases]
    quiet_data()
    # Ray's own hints leave out classes with arguments.
    worker: Any = _CaseWorker
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map(
        worker,
        fn_constructor_args=(ray.put(files), load, work, share.num_threads),
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
    def __init__(self, files: Any, load: Load, work: CaseWork, num_threads: int) -> None:
        log_to_stderr()
        torch.set_num_threads(num_threads)
        if isinstance(files, ray.ObjectRef):
            files = ray.get(files)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            self.models = load({path.name: path for path in Path(folder).iterdir()})
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        files = from_dict(CaseFiles, json.loads(row["item"]))
        try:
            answer = self.work(self.models, files)
        except GliorayError as error:
            answer = {"error": str(error)}
        return {"answer": json.dumps({"case_id": files.case_id, **answer})}
