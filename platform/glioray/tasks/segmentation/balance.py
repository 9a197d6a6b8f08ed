"""Class weights from the label counts of the training cases."""

from __future__ import annotations

from collections.abc import Sequence

from glioray.cases.labels import LABELS, REGION_LABELS
from glioray.cases.manifest import CaseEntry
from glioray.errors import UsageError
from glioray.losses import SEGMENTATION_LOSSES, takes_class_weights
from glioray.tasks.segmentation.config import LossConfig, RunConfig


def check_balance(config: LossConfig) -> None:
    """Check that the loss takes class weights, if `loss.balance` asks for some.

    Raises:
        UsageError: it takes none; names the losses that do.
    """
    if config.balance != "none" and not takes_class_weights(config.name):
        weighted = ", ".join(sorted(name for name in SEGMENTATION_LOSSES if takes_class_weights(name)))
        raise UsageError(
            f"loss.balance is '{config.balance}' but the loss '{config.name}' has no class weights; take none, or "
            f"one of {weighted}"
        )


def balance_classes(config: RunConfig, train: Sequence[CaseEntry], num_classes: int) -> RunConfig:
    """Return the config with `loss.options.class_weights` computed, if `loss.balance` asks for it.

    Args:
        config: of the run.
        train: the training cases, whose voxels are counted.
        num_classes: outputs of the network: background and labels, or regions.

    Raises:
        UsageError: the loss takes no class weights, or has others set.
    """
    check_balance(config.loss)
    if config.loss.balance == "none":
        return config
    power = {"inverse": 1.0, "sqrt": 0.5}[config.loss.balance]
    counts = {name: sum(entry.label_voxels.get(name, 0) for entry in train) for name in LABELS[1:]}
    num_voxels = max(sum(entry.brain_voxels for entry in train), sum(counts.values()))
    weigh = _region_weights if config.loss.target == "regions" else _label_weights
    weights = [float(f"{weight:.6g}") for weight in weigh(counts, num_voxels, power)[:num_classes]]
    given = config.loss.options.get("class_weights", weights)
    if given != weights:
        raise UsageError(
            f"loss.balance is '{config.loss.balance}' and loss.options.class_weights is {given}; set one of the two"
        )
    options = {**config.loss.options, "class_weights": weights}
    return config.replace(loss=config.loss.replace(options=options))


def _label_weights(counts: dict[str, int], num_voxels: int, power: float) -> list[float]:
    """Compute weights of background and labels: frequency in the brain to the power -`power`, scaled to mean 1.

    A label in no case weighs 1.
    """
    numbers = [num_voxels - sum(counts.values()), *counts.values()]
    raw = [(num_voxels / number) ** power if number else 0.0 for number in numbers]
    mean = sum(raw) / sum(weight > 0 for weight in raw)
    return [weight / mean if weight else 1.0 for weight in raw]


def _region_weights(counts: dict[str, int], num_voxels: int, power: float) -> list[float]:
    """Compute weights of voxels inside WT, TC and ET: (voxels outside / inside) ^ `power`; 1 for a region in no case.

    Voxels outside weigh 1 each. With a power of 1, inside and outside have equal total weight.
    """
    inside = [sum(counts[LABELS[label]] for label in labels) for labels in REGION_LABELS.values()]
    return [(max(num_voxels - n, 1) / n) ** power if n else 1.0 for n in inside]
