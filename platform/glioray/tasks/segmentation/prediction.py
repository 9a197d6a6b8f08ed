"""Masks of whole data sets, as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glioray.cases.casefiles import CaseFiles
from glioray.cases.collections import detect_convention
from glioray.cases.conventions import find_convention
from glioray.cases.labels import from_internal
from glioray.cases.load import load_case
from glioray.cases.nifti import encode_map, encode_mask
from glioray.engine.on_ray.batch import map_cases, split_failed
from glioray.storage import join_uri, open_storage
from glioray.tasks.segmentation.evaluation import load_predictor
from glioray.tasks.segmentation.findings import flag_case
from glioray.tasks.segmentation.predictor import Predictor, uncertainty


def predict_cases(
    package: Path,
    data: str,
    cases: Sequence[CaseFiles],
    out: str,
    *,
    labels: str | None = None,
    with_uncertainty: bool = False,
    resample: bool = False,
    on_case: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Write `<out>/<case>_seg.nii.gz` for each case; returns the masks' URIs, and why other cases have none.

    Args:
        package: folder of the model.
        data: the URI below which the cases lie.
        cases: their files.
        out: a folder or `s3://` URI.
        labels: the masks' label convention; by default that of the case's mask or else of its layout.
        with_uncertainty: write `<out>/<case>_uncertainty.nii.gz` too (see `predictor.uncertainty`).
        resample: as of `Predictor.predict`.
        on_case: as of `map_cases`.
    """
    work = partial(predict_case, data, out, labels, with_uncertainty, resample)
    good, failed = split_failed(map_cases({"model": package}, load_predictor, cases, work, on_case=on_case))
    return {case_id: answer["mask"] for case_id, answer in good.items()}, failed


def predict_case(
    data: str,
    out: str,
    labels: str | None,
    with_uncertainty: bool,
    resample: bool,
    predictor: Predictor,
    files: CaseFiles,
) -> dict[str, Any]:
    """Write one case's mask, and return {"mask": its URI, "notes": its flags}; arguments as of `predict_cases`.

    Raises:
        CaseError: the case cannot be read.
        ModelError: it does not fit the model.
    """
    storage = open_storage(data)
    # By default the numbers of the case's own mask, as its owner's tools expect them. Where a convention is stated,
    # the mask is not read, and a case that would be cut to its segmented slices is predicted whole.
    stated = labels or files.declared
    case = load_case(storage, files, with_mask=stated is None)
    convention = find_convention(stated) if stated else case.convention or detect_convention(set(), files)
    probs = predictor.probs(case, resample=resample)
    labels_found = predictor.decode(probs, case.voxel_ml)
    mask = from_internal(labels_found, convention)
    target = open_storage(out)
    if with_uncertainty:
        entropy = uncertainty(probs, predictor.spec.config.loss.target, predictor.spec.regions)
        target.write(f"{files.case_id}_uncertainty.nii.gz", encode_map(entropy, like=case.reference))
    # The mask comes last: where there is one, the case is complete.
    key = f"{files.case_id}_seg.nii.gz"
    target.write(key, encode_mask(mask, like=case.reference))
    spec, resampling = predictor.spec, predictor.describe_resampling(case)
    flags = flag_case(case, labels_found, spec.spacing_mm, spec.train_ranges, resampling)
    return {"mask": join_uri(target.uri, key), "notes": flags}
