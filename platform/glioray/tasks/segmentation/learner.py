"""The segmentation learner: one network, one optimiser, patient-level validation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from glioray.cases.labels import REGION_LABELS
from glioray.config import REGIONS
from glioray.engine.checkpoint import Checkpoint
from glioray.engine.collectives import Ranks, gather, reduce_sum
from glioray.engine.loop import check_finite
from glioray.engine.optim import MovingAverage, build_optimizer, learning_rate, to_evaluation, to_training
from glioray.engine.precision import Agree, autocast, choose_precision, to_device
from glioray.losses import build_loss
from glioray.serialization import to_dict
from glioray.slices.augment import Augment
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import Batch
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.metrics import Counts, confusion, dice_by_region, mean_dice
from glioray.tasks.segmentation.objective import Sizes, objective, region_sizes
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.slice_validation import HeldOutSlices, predict_slices
from glioray.tasks.segmentation.thresholds import Histogram, fit_thresholds, region_histogram

_log = logging.getLogger(__name__)
_NUM_PICTURES = 4
NUM_AVERAGED = 2
"""Validations, including the latest, that the objective is averaged over; see `infra/decisions/0009`."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One slice of a validation case, the same at every validation: (H, W) arrays, internal labels."""

    title: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


class SegmentationLearner:
    """Trains `spec`'s network with `config`'s loss and validates it on this rank's share of the cases or slices.

    `labelled_regions` maps a validation case to the regions that its mask labels; all of them if it is absent. `agree` is
    the plan's.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        judged: Sequence[tuple[SliceStack, ...]] | HeldOutSlices,
        ranks: Ranks,
        device: torch.device,
        labelled_regions: Mapping[str, tuple[str, ...]] | None = None,
        agree: Agree | None = None,
    ) -> None:
        self.config, self.spec, self.device, self.agree = config, spec, device, agree
        self.labelled_regions = labelled_regions or {}
        self.val_slices = judged if isinstance(judged, HeldOutSlices) else None
        self.val_cases = () if isinstance(judged, HeldOutSlices) else judged
        self.is_first = ranks.is_first
        torch.manual_seed(config.train.seed)
        self.net = to_device(spec.build(pretrained=True), device)
        self.ddp: nn.Module = self.net
        if ranks.world_size > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.ddp = nn.parallel.DistributedDataParallel(self.net, device_ids=ids)
        self.loss = build_loss(
            config.loss.name,
            target=config.loss.target,
            reduce=reduce_sum,
            side_weights=config.loss.side_weights,
            presence_weight=config.loss.presence_weight,
            **config.loss.options,
        ).to(device)
        self.optimizer = build_optimizer(self.net, config.optim)
        if self.is_first and config.optim.name == "schedulefree" and _has_batch_norm(self.net):
            _log.warning(
                "schedulefree keeps an average of the weights, but batch norm's running statistics are of those in "
                "training, so that validation may come out too low; prefer a network with net.options.norm=instance"
            )
        self.average = MovingAverage(self.net, config.optim.ema) if config.optim.ema else None
        # Positions are numbered per node, so the augmentation seed must differ per node too.
        self.augment = Augment(config.augment, config.train.seed + 1_000_003 * ranks.node_rank)
        self.pictures: list[Picture] = []
        self.stopped = ""
        self.precisions: dict[str, str] = {}
        self._histograms: list[dict[str, Histogram]] = []
        self._scores: list[float] = []

    @property
    def tags(self) -> dict[str, str]:
        """Tag the precisions of training and prediction, once they are chosen."""
        return {f"glioray.precision_{work}": name for work, name in self.precisions.items()}

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """Take one step; return `loss`, `lr` and the gradient's norm before clipping."""
        config = self.config.optim
        lr = learning_rate(config, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.ddp.train()
        to_training(self.optimizer)
        images, masks = self.augment(batch.to(self.device), epoch)
        images = images.contiguous(memory_format=torch.channels_last)
        if "training" not in self.precisions:
            self.precisions["training"] = self._training_precision(images, masks)
        with autocast(self.device, self.precisions["training"]):
            outputs = self.ddp(images)
        loss = self.loss(outputs, masks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # DDP has averaged the gradients, so this norm, and every decision based on it, is equal on all ranks.
        limit = config.grad_clip or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), limit))
        check_finite("the gradient's norm", norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.net)
        return {"loss": float(loss.detach()), "lr": lr, "grad_norm": norm}

    def _training_precision(self, images: torch.Tensor, masks: torch.Tensor) -> str:
        """The precision in which a network like this one learns faster from such a batch."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            net = to_device(self.spec.build(), self.device).train()

        def step(precision: str) -> None:
            with autocast(self.device, precision):
                outputs = net(images)
            self.loss(outputs, masks).backward()
            net.zero_grad()

        return choose_precision(
            config.train.precision,
            self.device,
            step,
            work="training",
            identity=[to_dict(config.net), self.spec.out_channels, to_dict(config.loss), list(images.shape)],
            shared=True,
            agree=self.agree,
        )

    def validate(self) -> dict[str, float]:
        """Compute the patient-level 3-D Dice of the averaged weights, postprocessed as when served."""
        precision = self.precisions.get("prediction")
        predictor = Predictor(self.spec, self._inference_net(), str(self.device), precision=precision)
        if precision is None:
            self.precisions["prediction"] = predictor.choose_precision(shared=True, agree=self.agree)
            predictor = Predictor(
                self.spec, predictor.net, str(self.device), precision=self.precisions["prediction"]
            )
        if self.val_slices is not None:
            return self._validate_slices(predictor, self.val_slices)
        tables: dict[str, tuple[Counts, float]] = {}
        histograms: dict[str, dict[str, Histogram]] = {}
        self.pictures = []
        for stacks in self.val_cases:
            probs = predictor.probs_of_stacks(stacks)
            labels = predictor.decode(probs, stacks[0].voxel_ml)
            tables[stacks[0].case_id] = counts_in_case(stacks[0], labels), stacks[0].voxel_ml
            if self.config.postprocess.fit_thresholds:
                known = self._known(stacks[0].case_id)
                histograms[stacks[0].case_id] = _region_histograms(stacks[0], probs, known)
            if len(self.pictures) < _NUM_PICTURES:
                self.pictures.append(_picture(stacks[0], labels, len(self.config.preprocess.modalities)))
        tables = {case_id: table for part in gather(tables) for case_id, table in part.items()}
        histograms = {case_id: found for part in gather(histograms) for case_id, found in part.items()}
        self._histograms = [found for _, found in sorted(histograms.items())]
        if not tables:
            return {}
        tables = dict(sorted(tables.items()))
        labelled = [self._known(case_id) for case_id in tables]
        counts = [table for table, _ in tables.values()]
        dice = dice_by_region(counts, labelled)
        sizes = [region_sizes(*table, known) for table, known in zip(tables.values(), labelled, strict=True)]
        self.spec = dataclasses.replace(
            self.spec,
            val_cases=dict(zip(tables, dice, strict=True)),
            val_sizes=dict(zip(tables, sizes, strict=True)),
        )
        return {**mean_dice(counts, labelled), **self._objective(sizes)}

    def _objective(self, sizes: Sequence[Mapping[str, Sizes]]) -> dict[str, float]:
        """`objective` of these cases, averaged over the latest validations."""
        terms = objective(sizes)
        self._scores = [*self._scores, terms["objective"]][-NUM_AVERAGED:]
        return {**terms, "objective": float(np.mean(self._scores))}

    def _known(self, case_id: str) -> tuple[str, ...]:
        return self.labelled_regions.get(case_id, REGIONS)

    def finish(self) -> dict[str, float]:
        """Fit thresholds on the validation cases and return the metrics under them; empty if none are fitted."""
        config = self.spec.config
        if not config.postprocess.fit_thresholds:
            return {}
        if not self._histograms:
            if self.is_first:
                _log.warning("there is no validation case to fit thresholds on; they stay as they are")
            return {}
        thresholds = fit_thresholds(self._histograms, config.postprocess.thresholds)
        rules = config.postprocess.replace(thresholds=thresholds)
        self.spec = dataclasses.replace(self.spec, config=config.replace(postprocess=rules))
        if self.is_first:
            _log.info(
                "thresholds fitted on the %d validation cases: WT %g, TC %g, ET %g; their Dice is optimistic from here "
                "on, test the model on other patients", len(self._histograms), *thresholds,
            )  # fmt: skip
        fitted = {f"threshold_{name}": value for name, value in zip(REGIONS, thresholds, strict=True)}
        self._scores.pop()  # the validation without them
        return {**self.validate(), **fitted}

    def _validate_slices(self, predictor: Predictor, held_out: HeldOutSlices) -> dict[str, float]:
        """Average Dice over slices, not patients; see `engine.splits.INFLATED`."""
        tables: list[tuple[Counts, tuple[str, ...], float]] = []
        self.pictures = []
        shown = held_out.indices[:: max(len(held_out.indices) // _NUM_PICTURES, 1)][:_NUM_PICTURES]
        for index, truth, prediction in predict_slices(predictor, held_out):
            number, place = held_out.store.locate(index)
            stack = held_out.store.stacks[number]
            tables.append((confusion(truth, prediction), self._known(stack.case_id), stack.voxel_ml))
            if index in shown:
                num_modalities = len(self.config.preprocess.modalities)
                self.pictures.append(_slice_picture(stack, place, prediction, num_modalities))
        tables = [table for part in gather(tables) for table in part]
        if not tables:
            return {}
        sizes = [region_sizes(table, voxel_ml, known) for table, known, voxel_ml in tables]
        dice = mean_dice([table for table, *_ in tables], [known for _, known, _ in tables])
        return {**dice, **self._objective(sizes)}

    def state(self) -> dict[str, Any]:
        """Return network, optimiser, weight average and the latest objectives."""
        to_evaluation(self.optimizer)
        average = self.average
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None
            if average is None
            else {"weights": average.weights, "num_updates": average.num_updates},
            "scores": self._scores,
            "precisions": self.precisions,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None and state["average"] is not None:
            for name, tensor in state["average"]["weights"].items():
                self.average.weights[name].copy_(tensor)
            self.average.num_updates = state["average"]["num_updates"]
        # Older checkpoints have neither.
        self._scores = list(state.get("scores", []))
        self.precisions = dict(state.get("precisions", {}))

    def checkpoint(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> Checkpoint:
        """Pack the model that validation evaluated."""
        self.spec = dataclasses.replace(self.spec, metrics=metrics)
        return Checkpoint(step=step, spec=self.spec, weights=self._weights(), state=state)

    def _weights(self) -> dict[str, torch.Tensor]:
        to_evaluation(self.optimizer)
        return self.net.state_dict() if self.average is None else self.average.weights

    def _inference_net(self) -> nn.Module:
        net = self.spec.build()
        net.load_state_dict(self._weights())
        return net


def _has_batch_norm(net: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def counts_in_case(stack: SliceStack, labels: NDArray[np.uint8]) -> Counts:
    """Count the confusion matrix over a whole case (X, Y, Z); tumour outside the stack's window counts as missed."""
    assert stack.mask is not None, "validation cases are labelled"
    table = confusion(stack.restore(np.asarray(stack.mask)), labels)
    table[:, 0] += np.asarray(stack.label_voxels) - table.sum(axis=1)
    return table


def _region_histograms(
    stack: SliceStack, probs: NDArray[np.float32], known: Sequence[str]
) -> dict[str, Histogram]:
    """Of the known regions over a whole case, probabilities (3, X, Y, Z); the truth as `counts_in_case` has it."""
    assert stack.mask is not None, "validation cases are labelled"
    truth = stack.restore(np.asarray(stack.mask))
    histograms = {}
    for region, (name, labels) in zip(probs, REGION_LABELS.items(), strict=True):
        if name in known:
            inside = np.isin(truth, labels)
            num_unseen = sum(stack.label_voxels[label] for label in labels) - int(np.count_nonzero(inside))
            histograms[name] = region_histogram(region, inside, num_unseen)
    return histograms


def _picture(stack: SliceStack, labels: NDArray[np.uint8], num_modalities: int) -> Picture:
    assert stack.mask is not None
    number = int((stack.mask > 0).sum(axis=(1, 2)).argmax())
    return _slice_picture(stack, number, stack.cut(labels)[number], num_modalities)


def _slice_picture(
    stack: SliceStack, number: int, prediction: NDArray[np.uint8], num_modalities: int
) -> Picture:
    assert stack.mask is not None
    # The last modality, usually FLAIR, shows the whole tumour best.
    image = np.asarray(stack.images[number, num_modalities - 1], np.float32)
    title = f"{stack.case_id}, {stack.plane} {number + stack.origin[0]}"
    # RAS+ indices grow to the front, top and right; figures start at the top, with the patient's right first.
    shown = (slice(None, None, -1), slice(None, None, -1))
    return Picture(title, image[shown], np.asarray(stack.mask[number])[shown], prediction[shown])
