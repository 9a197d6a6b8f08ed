"""Batches of cached slices, in an order that depends only on seed and epoch.

Not torch's DataLoader and DistributedSampler: slices are already decoded and mapped, so workers would only copy
them once more, and the global batch must not depend on the number of ranks.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.config import PreprocessConfig, SampleConfig
from glioray.errors import DataError
from glioray.slices.preprocess import SliceStack
from glioray.slices.splits import usable_slices


@dataclass(frozen=True)
class Batch:
    """A batch of slices.

    Attributes:
        images: (B, C, H, W) float32; C = slices x (modalities, and the brain's mask if configured), with
            neighbouring slices ordered from the lowest to the highest.
        masks: (B, H, W) uint8 internal labels.
        positions: (B,), each sample's index in its node's order of the epoch, which seeds augmentation.
        lateral: (B,), whether columns run from left to right, so that mirroring gives a plausible head.
        is_intensity: (C,), True for intensities, False for the brain's mask of 0 and 1; a single value
            applies to all channels.
    """

    images: torch.Tensor
    masks: torch.Tensor
    positions: NDArray[np.int64]
    lateral: NDArray[np.bool_]
    is_intensity: NDArray[np.bool_] = field(default_factory=lambda: np.ones(1, bool))

    def __post_init__(self) -> None:
        # A copy, since torch warns about read-only memory.
        channels = np.broadcast_to(self.is_intensity, self.images.shape[1:2]).copy()
        object.__setattr__(self, "is_intensity", channels)

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device; the copy is asynchronous from pinned memory."""
        if device.type == "cpu":
            return self
        images, masks = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.masks))
        return replace(self, images=images, masks=masks)

    def pin(self) -> Batch:
        """Copy the batch to pinned memory."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


class SliceStore:
    """The slices of several stacks under one index.

    A batch is copied slice by slice from the mapped files into one new float32 tensor, without worker
    processes, queues or a second copy of the data set in memory.
    """

    def __init__(self, stacks: Sequence[SliceStack], preprocess: PreprocessConfig) -> None:
        if not stacks:
            raise DataError("No cases to draw slices from; check the split and the manifest")
        self.stacks = sorted(stacks, key=lambda stack: (stack.case_id, stack.plane))
        self.preprocess = preprocess
        self._images = [_map_tensor(stack.images) for stack in self.stacks]
        self._masks = [None if stack.mask is None else _map_tensor(stack.mask) for stack in self.stacks]
        self._offsets = np.cumsum([0, *(len(images) for images in self._images)])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def tumour_px(self) -> NDArray[np.int64]:
        """(len,), the number of tumour pixels in each slice."""
        counts = [
            np.zeros(len(stack.images), np.int64)
            if stack.mask is None
            else np.count_nonzero(stack.mask, axis=(1, 2))
            for stack in self.stacks
        ]
        return np.concatenate(counts)

    def case_numbers(self) -> NDArray[np.int64]:
        """(len,), the number of each slice's case, counted from 0."""
        _, numbers = np.unique([stack.case_id for stack in self.stacks], return_inverse=True)
        return np.repeat(numbers, np.diff(self._offsets))

    def locate(self, index: int) -> tuple[int, int]:
        """(index of the slice's stack in `stacks`, index of the slice in that stack)."""
        number = int(np.searchsorted(self._offsets, index, side="right")) - 1
        return number, int(index - self._offsets[number])

    def draw(
        self, indices: Sequence[int] | NDArray[np.int64], positions: NDArray[np.int64] | None = None
    ) -> Batch:
        """The batch of slices at `indices`; `positions` are by default 0 to B - 1."""
        _, modalities, height, width = self._images[0].shape
        offsets = self._neighbour_offsets()
        images = torch.empty(len(indices), len(offsets) * modalities, height, width)
        masks = torch.zeros(len(indices), height, width, dtype=torch.uint8)
        lateral = np.empty(len(indices), bool)
        for row, index in enumerate(indices):
            number, place = self.locate(int(index))
            stack, mask = self._images[number], self._masks[number]
            lateral[row] = self.stacks[number].plane != "sagittal"
            for block, offset in enumerate(offsets):
                target = images[row, block * modalities : (block + 1) * modalities]
                # Beyond either end of the brain there is background.
                if 0 <= place + offset < len(stack):
                    target.copy_(stack[place + offset])
                else:
                    target.zero_()
            if mask is not None:
                masks[row].copy_(mask[place])
        positions = np.arange(len(indices)) if positions is None else positions
        return Batch(images, masks, positions, lateral, np.tile(self._is_intensity(), len(offsets)))

    def stack_batches(self, number: int, batch_size: int) -> Iterator[Batch]:
        """All slices of stack `number`, in order."""
        start, stop = self._offsets[number], self._offsets[number + 1]
        for low in range(start, stop, batch_size):
            yield self.draw(np.arange(low, min(low + batch_size, stop)))

    def warm(self, budget_bytes: int) -> int:
        """Ask the kernel to read stacks ahead, up to a budget; return the bytes requested."""
        requested = 0
        for stack in self.stacks:
            mapping = getattr(stack.images, "_mmap", None)
            if mapping is not None and requested + stack.images.nbytes <= budget_bytes:
                mapping.madvise(mmap.MADV_WILLNEED)
                requested += stack.images.nbytes
        return requested

    def _is_intensity(self) -> NDArray[np.bool_]:
        """(C,), for the channels of a single slice."""
        flags = np.ones(self._images[0].shape[1], bool)
        flags[len(self.preprocess.modalities) :] = False
        return flags

    def _neighbour_offsets(self) -> list[int]:
        reach, step = self.preprocess.neighbours, self.preprocess.neighbour_step
        return [k * step for k in range(-reach, reach + 1)]


def _map_tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """A tensor over the array's memory, which is never written.

    torch would warn about read-only memory.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


class EpochSampler:
    """The slices drawn in each step of an epoch.

    The order depends only on (seed, epoch), so that a resumed run sees the same batches. The global batch
    does not depend on the number of ranks: rank r of n takes the r-th of n equal parts.
    """

    def __init__(
        self,
        tumour_px: NDArray[np.int64],
        case_numbers: NDArray[np.int64],
        config: SampleConfig,
        batch_size: int,
        seed: int,
        allowed: NDArray[np.bool_] | None = None,
    ) -> None:
        """Prepare the sampling of one pool of slices, shared by several ranks.

        Args:
            tumour_px: (slices,), from `SliceStore.tumour_px`.
            case_numbers: (slices,), from `SliceStore.case_numbers`.
            config: which slices are drawn, and how often.
            batch_size: over all ranks that share the pool.
            seed: of the order.
            allowed: (slices,) flags from `deal_slices`; None allows all slices that `config` does not exclude.

        Raises:
            DataError: no slice can be drawn.
        """
        if allowed is None:
            self._foreground, self._empty = usable_slices(tumour_px, config)
        else:
            self._foreground, self._empty = (
                np.flatnonzero(allowed & flags) for flags in (tumour_px > 0, tumour_px == 0)
            )
        self._config, self._batch_size, self._seed = config, batch_size, seed
        self._case_numbers = case_numbers
        self.num_slices = len(self._foreground) + len(self._empty)
        if config.min_tumour_px and not len(self._foreground):
            raise DataError(
                f"No training slice has {config.min_tumour_px} tumour pixels; lower sample.min_tumour_px"
            )
        if not self.num_slices:
            raise DataError(
                f"No slice to train on: none has tumour and sample.empty_share is {config.empty_share:g}; increase "
                "sample.empty_share"
            )

    @property
    def num_steps(self) -> int:
        """The number of steps in an epoch."""
        return self._config.steps_per_epoch or -(-self.num_slices // self._batch_size)

    def epoch(self, epoch: int, num_steps: int | None = None) -> NDArray[np.int64]:
        """(steps, batch) indices of slices; the last batch is filled with further draws."""
        steps = num_steps or self.num_steps
        rng = np.random.default_rng([self._seed, epoch])
        share = self._config.foreground_share
        if share is None or not len(self._foreground) or not len(self._empty):
            pool = np.concatenate([self._foreground, self._empty])
            return self._draw(rng, pool, steps * self._batch_size).reshape(steps, self._batch_size)
        num_foreground = max(round(share * self._batch_size), int(share > 0))
        rows = [
            self._draw(rng, self._foreground, steps * num_foreground).reshape(steps, -1),
            self._draw(rng, self._empty, steps * (self._batch_size - num_foreground)).reshape(steps, -1),
        ]
        # Shuffled within each batch, so that every rank's part has both kinds.
        return rng.permuted(np.concatenate(rows, axis=1), axis=1)

    def _draw(self, rng: np.random.Generator, pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Draw `count` slices by permutations or, if balanced, each case with equal probability."""
        if self._config.balance_cases:
            cases = self._case_numbers[pool]
            weights = 1 / np.bincount(cases)[cases]
            return rng.choice(pool, count, p=weights / weights.sum())
        rounds = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
        return np.concatenate([*rounds, pool[:0]])[:count]


class SliceFeed:
    """This rank's batches, epoch by epoch.

    Args:
        store: the slices shared by all ranks of the node.
        sampler: over the store, with the node's part of the global batch.
        part: (index, count) of this rank among those of the node.
        num_steps: steps in an epoch, equal on every rank.
        pin: for a GPU: use pinned memory, filled one batch ahead in a thread.
    """

    def __init__(
        self,
        store: SliceStore,
        sampler: EpochSampler,
        part: tuple[int, int],
        num_steps: int,
        *,
        pin: bool = False,
    ) -> None:
        self.store, self.sampler, self.part, self.num_steps, self.pin = store, sampler, part, num_steps, pin

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; each depends only on the epoch and the step."""
        order = self.sampler.epoch(epoch, self.num_steps)
        index, count = self.part
        width = order.shape[1] // count
        columns = slice(index * width, (index + 1) * width)

        def batch(step: int) -> Batch:
            positions = step * order.shape[1] + np.arange(order.shape[1])[columns]
            drawn = self.store.draw(order[step, columns], positions)
            return drawn.pin() if self.pin else drawn

        if not self.pin:
            yield from map(batch, range(first_step, self.num_steps))
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(batch, first_step)
            for step in range(first_step, self.num_steps):
                ready = ahead.result()
                if step + 1 < self.num_steps:
                    ahead = pool.submit(batch, step + 1)
                yield ready
