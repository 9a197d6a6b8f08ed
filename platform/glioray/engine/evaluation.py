"""Which cases evaluate a model, and what is said of them, whatever its task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from glioray.cases.casefiles import CaseFiles, patient_key
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.engine.task import Spec
from glioray.errors import DataError, UsageError
from glioray.metrics.panoptic import find_panoptica
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)

RULES = ("brats2023", "brats2026")
"""Names of rules by which lesions of masks are evaluated; 2026's metrics are added to the others."""


def check_resample(resample: bool, output: str) -> None:
    """Refuse to resample cases for a model that has no mask to bring back.

    Args:
        resample: whether that was asked for.
        output: `Task.output` of the model.

    Raises:
        UsageError: a model that makes images.
    """
    if resample and output != "labels":
        raise UsageError(
            "resample is for models that make masks, but the model makes images; leave it out, or give its scale"
        )


def check_rule(rule: str, output: str) -> None:
    """Fail fast on a rule that a model cannot be evaluated by.

    Args:
        rule: a name of `RULES`.
        output: `Task.output` of the model.

    Raises:
        UsageError: no such rule, a model that makes no masks, or panoptica is missing.
    """
    if rule not in RULES:
        raise UsageError(f"metrics is '{rule}'; expected one of {', '.join(RULES)}")
    if rule == "brats2023":
        return
    if output != "labels":
        raise UsageError(
            "metrics is 'brats2026', which evaluates masks, but the model makes images; leave it out"
        )
    try:
        find_panoptica()
    except ImportError as error:
        raise UsageError(
            f"metrics is 'brats2026', which needs panoptica, but it cannot be imported ({error}); install the extra "
            "'panoptica' of pyproject.toml, then: pip install --no-deps -r infra/no-deps-panoptica.txt"
        ) from error


def select_cases(
    manifest: Manifest,
    specs: Mapping[str, Spec],
    split: str = "unseen",
    *,
    labelled: bool,
    used: str = "trained",
) -> list[CaseEntry]:
    """Select the cases of a split; of "unseen", those of patients that no model was trained on.

    Patients are recognised by their names, and by their images.

    Args:
        manifest: the data.
        specs: of the models, by their names in a message.
        split: "unseen", or as `Manifest.select` takes it.
        labelled: leave out cases without a mask.
        used: what was done with `Spec.train_patients`, in a message.

    Raises:
        DataError: none is left; says how many of the patients each model was trained on.
        UsageError: no such split.
    """
    kind = "labelled case" if labelled else "case"
    entries = manifest.select("all" if split == "unseen" else split)
    entries = [entry for entry in entries if entry.has_mask or not labelled]
    if not entries:
        where = "" if split == "unseen" else f" in the split '{split}'"
        raise DataError(f"'{manifest.data}' has no {kind}{where}; name another --split or other data")
    if split != "unseen":
        return entries
    patients = {entry.patient_id for entry in entries}
    seen = {name: patients & seen_patients(spec, manifest.cases) for name, spec in specs.items()}
    renamed = [
        entry.case_id
        for entry in entries
        if any(entry.patient_id in seen[name] and not _is_named(entry, spec) for name, spec in specs.items())
    ]
    if renamed:
        _log.warning(
            "%d of %d cases are of patients of the training under other names, by their images, and are left out: %s",
            len(renamed), len(entries), ", ".join(renamed[:5]) + (" …" if len(renamed) > 5 else ""),
        )  # fmt: skip
    unseen = [entry for entry in entries if not any(entry.patient_id in known for known in seen.values())]
    if not unseen:
        counts = ", ".join(f"the {name} on {len(known)}" for name, known in seen.items())
        raise DataError(
            f"no patient of the {len(entries)} {kind}s in '{manifest.data}' is new to every model: of {len(patients)} "
            f"patients were {used} {counts}; evaluate on other cases, or name a --split, such as labelled, to include "
            "patients of the training"
        )
    return unseen


def seen_patients(spec: Spec, entries: Sequence[CaseEntry]) -> set[str]:
    """Those patients of a data set that a model was trained on.

    Models of older versions and of other tasks state no `train_images`; theirs are recognised by name alone.
    """
    images = set(getattr(spec, "train_images", ()))
    return {e.patient_id for e in entries if _is_named(e, spec) or e.image_digests & images}


def _is_named(entry: CaseEntry, spec: Spec) -> bool:
    """Whether a case's patient is among those of a model's training by name, in whatever collection."""
    return not {patient_key(n) for n in entry.patient_names}.isdisjoint(map(patient_key, spec.train_patients))


def describe_training(entries: Sequence[CaseEntry]) -> dict[str, Any]:
    """`train_patients` and `train_images` of a model that is trained on these cases, each a sorted tuple."""
    return {
        "train_patients": tuple(sorted({name for entry in entries for name in entry.patient_names})),
        "train_images": tuple(sorted({digest for entry in entries for digest in entry.image_digests})),
    }


def files_of(entries: Sequence[CaseEntry]) -> list[CaseFiles]:
    """The cases' files, each with what the manifest states of them."""
    return [entry.described_files for entry in entries]


def write_report(report: Mapping[str, bytes], out: str) -> list[str]:
    """Write the files of an evaluation below a folder or `s3://` URI; returns their URIs."""
    storage = open_storage(out)
    for name, data in report.items():
        storage.write(name, data)
    return [join_uri(storage.uri, name) for name in report]


def patients_of(entries: Sequence[CaseEntry]) -> dict[str, str]:
    """Case id -> patient id."""
    return {entry.case_id: entry.patient_id for entry in entries}
