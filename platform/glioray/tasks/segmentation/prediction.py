"""Masks of whole data sets, as files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glioray.cases.casefiles import CaseFiles
from glioray.cases.collections import detect_convention
from glioray.cases.conventions import find_convention
from glioray.cases.labels import from_internal
from glioray.cases.load import load_case
from glioray.cases.nifti import encode_map, encode_mask
from glioray.engine.case_records import CaseRecords, describe_inputs
from glioray.engine.on_ray.batch import map_cases, split_failed
from glioray.engine.package import digest_package
from glioray.storage import join_uri, open_storage
from glioray.tasks.segmentation.evaluation import load_predictor
from glioray.tasks.segmentation.findings import flag_case
from glioray.tasks.segmentation.predictor import Predictor, uncertainty

_log = logging.getLogger(__name__)


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

    Masks that are there, made by this model of these files with these options, are not made again.

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
    options = {"labels": labels, "uncertainty": with_uncertainty, "resample": resample}
    records = CaseRecords(out, {"model": digest_package(package), **options})
    inputs = describe_inputs(open_storage(data), cases)
    done = records.find_done(inputs)
    if done:
        _log.info(
            "%d of %d masks are there already, made by this model with these options", len(done), len(cases)
        )
    masks = {}
    for case_id, notes in done.items():
        masks[case_id] = join_uri(records.storage.uri, _mask_key(case_id))
        for note in notes:
            _log.warning("%s: %s", case_id, note)
        if on_case is not None:
            on_case({"case_id": case_id, "mask": masks[case_id]})
    left = [files for files in cases if files.case_id not in done]
    if not left:
        return masks, {}
    work = partial(
        _predict_and_record,
        records,
        inputs,
        partial(predict_case, data, out, labels, with_uncertainty, resample),
    )
    good, failed = split_failed(map_cases({"model": package}, load_predictor, left, work, on_case=on_case))
    return masks | {case_id: answer["mask"] for case_id, answer in good.items()}, failed


def _predict_and_record(
    records: CaseRecords,
    inputs: Mapping[str, str],
    predict: Callable[[Predictor, CaseFiles], dict[str, Any]],
    predictor: Predictor,
    files: CaseFiles,
) -> dict[str, Any]:
    """`predict_case`, between the removal of the case's old record and its new one."""
    records.begin(files.case_id)
    answer = predict(predictor, files)
    records.finish(files.case_id, inputs[files.case_id], answer.pop("sizes"), answer["notes"])
    return answer


def _mask_key(case_id: str) -> str:
    return f"{case_id}_seg.nii.gz"


def predict_case(
    data: str,
    out: str,
    labels: str | None,
    with_uncertainty: bool,
    resample: bool,
    predictor: Predictor,
    files: CaseFiles,
) -> dict[str, Any]:
    """Write one case's mask; returns {"mask": its URI, "notes": its flags, "sizes": bytes by key}.

    Arguments as of `predict_cases`.

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
    outputs = {}
    if with_uncertainty:
        entropy = uncertainty(probs, predictor.spec.config.loss.target, predictor.spec.regions)
        outputs[f"{files.case_id}_uncertainty.nii.gz"] = encode_map(entropy, like=case.reference)
    # The mask comes last: where there is one, the case is complete.
    outputs[_mask_key(files.case_id)] = encode_mask(mask, like=case.reference)
    target = open_storage(out)
    for key, content in outputs.items():
        target.write(key, content)
    spec, resampling = predictor.spec, predictor.describe_resampling(case)
    flags = flag_case(case, labels_found, spec.spacing_mm, spec.train_ranges, resampling)
    sizes = {key: len(content) for key, content in outputs.items()}
    return {"mask": join_uri(target.uri, _mask_key(files.case_id)), "notes": flags, "sizes": sizes}
