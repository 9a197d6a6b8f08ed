"""A manifest's splits as MLflow's data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mlflow.entities import Dataset, DatasetInput, InputTag

from glioray.cases.manifest import CaseEntry, Manifest

_CONTEXT = "mlflow.data.context"


def dataset_name(manifest: Manifest, split: str) -> str:
    """The name of a split's data set, such as "brats/val"; its digest is the manifest's hash."""
    return f"{manifest.data.rstrip('/').rpartition('/')[2] or 'data'}/{split}"[:500]


def validation_data(manifest: Manifest) -> tuple[str, str]:
    """Name and digest of the data set that the metrics of a run on this manifest are measured on."""
    return dataset_name(manifest, "val" if manifest.select("val") else "train"), manifest.hash


def dataset_input(manifest: Manifest, split: str, context: str, entries: Sequence[CaseEntry]) -> DatasetInput:
    """A part of a manifest as the input of a run.

    Args:
        manifest: whose hash is the digest.
        split: name of the part.
        context: "training", "validation" or "evaluation".
        entries: its cases.
    """
    profile = {
        "num_cases": len(entries),
        "num_patients": len({entry.patient_id for entry in entries}),
        "num_labelled": sum(entry.has_mask for entry in entries),
        "split": split,
    }
    dataset = Dataset(
        name=dataset_name(manifest, split),
        digest=manifest.hash,
        source_type="s3" if manifest.data.startswith("s3:") else "local",
        source=json.dumps({"uri": manifest.data}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, context)])
