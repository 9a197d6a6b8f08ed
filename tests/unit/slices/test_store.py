"""Batches have the right pixels, in an order that depends only on seed and epoch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from glioray.cases.manifest import CaseEntry
from glioray.config import MODALITIES, PreprocessConfig, SampleConfig
from glioray.errors import DataError
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import Batch, EpochSampler, SliceFeed, SliceStore

MakeStack = Callable[..., SliceStack]
CONFIG = PreprocessConfig(size=(32, 48))


@pytest.fixture
def stacks(make_stack: MakeStack) -> list[SliceStack]:
    """35 slices of three cases, unsorted: one in two planes, one without a mask."""
    return [
        make_stack("B", 7),
        make_stack("A", 10, plane="sagittal"),
        make_stack("C", 5, with_mask=False),
        make_stack("A", 13),
    ]


@pytest.fixture
def store(stacks: list[SliceStack]) -> SliceStore:
    return SliceStore(stacks, CONFIG)


def sampler_of(store: SliceStore, config: SampleConfig, batch_size: int = 8, seed: int = 0) -> EpochSampler:
    return EpochSampler(store.tumour_px(), store.case_numbers(), config, batch_size, seed)


def test_a_draw_equals_plain_indexing(store: SliceStore, stacks: list[SliceStack]) -> None:
    """Slices are numbered through the stacks, sorted by case and plane."""
    ordered = [stacks[3], stacks[1], stacks[0], stacks[2]]
    images = np.concatenate([stack.images for stack in ordered]).astype(np.float32)
    masks = np.concatenate(
        [np.zeros((5, 32, 48), np.uint8) if stack.mask is None else stack.mask for stack in ordered]
    )
    assert len(store) == 35
    for indices in (np.arange(35), np.array([34, 0, 12, 13, 13, 22, 23, 29, 30]), [7]):
        batch = store.draw(indices)
        assert (batch.images.dtype, batch.masks.dtype) == (torch.float32, torch.uint8)
        np.testing.assert_array_equal(batch.images, images[indices])
        np.testing.assert_array_equal(batch.masks, masks[indices])
        np.testing.assert_array_equal(batch.positions, np.arange(len(indices)))
        # Rows of a sagittal slice do not run from left to right.
        np.testing.assert_array_equal(batch.lateral, [not 13 <= index < 23 for index in indices])
    np.testing.assert_array_equal(store.tumour_px(), [(mask > 0).sum() for mask in masks])
    np.testing.assert_array_equal(store.case_numbers(), [0] * 23 + [1] * 7 + [2] * 5)


@pytest.mark.parametrize(("reach", "step"), [(1, 1), (2, 1), (1, 3), (4, 8)])
def test_neighbours_beyond_the_ends_of_the_brain_are_background(
    stacks: list[SliceStack], reach: int, step: int
) -> None:
    """They are never slices of the next case or plane."""
    store = SliceStore(stacks, PreprocessConfig(size=(32, 48), neighbours=reach, neighbour_step=step))
    batch, row = store.draw(np.arange(35)), 0
    for stack in (stacks[3], stacks[1], stacks[0], stacks[2]):
        pad = reach * step
        padded = np.pad(stack.images.astype(np.float32), ((pad, pad), (0, 0), (0, 0), (0, 0)))
        for place in range(len(stack.images)):
            expected = np.concatenate([padded[place + pad + k * step] for k in range(-reach, reach + 1)])
            np.testing.assert_array_equal(batch.images[row], expected)
            row += 1


@pytest.mark.parametrize(("brain_channel", "reach"), [(False, 0), (False, 1), (True, 0), (True, 1)])
def test_a_batch_marks_its_intensity_channels(
    stacks: list[SliceStack], brain_channel: bool, reach: int
) -> None:
    """The brain's mask follows the modalities of each slice."""
    three = ("t1", "t1c", "flair")
    config = PreprocessConfig(
        size=(32, 48), modalities=three if brain_channel else MODALITIES, brain_channel=brain_channel,
        neighbours=reach,
    )  # fmt: skip
    batch = SliceStore(stacks, config).draw([3, 20])
    assert batch.images.shape[1] == len(batch.is_intensity) == config.num_channels
    expected = ([True] * 3 + [not brain_channel]) * (2 * reach + 1)
    assert torch.as_tensor(batch.is_intensity).tolist() == expected
    plain = Batch(batch.images, batch.masks, batch.positions, batch.lateral)
    assert torch.as_tensor(plain.is_intensity).tolist() == [True] * config.num_channels


def test_mapped_slices_are_read_without_warnings_and_not_modified(
    tmp_path: Path, stacks: list[SliceStack], make_entry: Callable[..., CaseEntry]
) -> None:
    cache, entry = SliceCache(CacheConfig(folder=str(tmp_path)), CONFIG), make_entry("A")
    cache.put(entry, [stacks[3]])
    mapped = SliceStore(cache.get(entry) or (), CONFIG)
    assert mapped.warm(1 << 30) == stacks[3].images.nbytes
    assert mapped.warm(stacks[3].images.nbytes - 1) == 0
    batch = mapped.draw([3, 5])
    np.testing.assert_array_equal(batch.images, stacks[3].images[[3, 5]])
    batch.images.zero_()
    batch.masks.zero_()
    np.testing.assert_array_equal(mapped.draw([3, 5]).images, stacks[3].images[[3, 5]])


def test_a_stack_is_read_in_order(store: SliceStore, stacks: list[SliceStack]) -> None:
    batches = list(store.stack_batches(1, 4))
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(torch.cat([batch.images for batch in batches]), stacks[1].images)


def test_a_store_without_cases_is_an_error() -> None:
    with pytest.raises(DataError, match="No cases to draw slices from"):
        SliceStore([], CONFIG)


def test_every_slice_is_drawn_once_per_epoch(store: SliceStore) -> None:
    sampler = sampler_of(store, SampleConfig())
    assert (sampler.num_slices, sampler.num_steps) == (35, 5)
    for epoch in range(3):
        order = sampler.epoch(epoch)
        assert order.shape == (5, 8)
        assert sorted(order.ravel()[:35].tolist()) == list(range(35))


def test_the_order_depends_on_seed_and_epoch_only(store: SliceStore) -> None:
    config = SampleConfig(foreground_share=0.5)
    one, again = (sampler_of(store, config, seed=3) for _ in range(2))
    orders = [one.epoch(epoch) for epoch in range(4)]
    for epoch in (3, 1, 0, 2):
        np.testing.assert_array_equal(again.epoch(epoch), orders[epoch])
    assert len({order.tobytes() for order in orders}) == 4
    assert sampler_of(store, config, seed=4).epoch(0).tobytes() != orders[0].tobytes()


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_each_batch_has_its_share_of_tumour(store: SliceStore, share: float, expected: int) -> None:
    sampler, foreground = sampler_of(store, SampleConfig(foreground_share=share)), store.tumour_px() > 0
    order = np.concatenate([sampler.epoch(epoch) for epoch in range(4)])
    assert (foreground[order].sum(axis=1) == expected).all()
    # Over the epochs all slices of the drawn kind appear.
    wanted = ({*np.flatnonzero(foreground)} if share else set()) | (
        {*np.flatnonzero(~foreground)} if share < 1 else set()
    )
    assert {*order.ravel()} == wanted


def test_empty_share_keeps_a_fraction_of_the_empty_slices(store: SliceStore) -> None:
    foreground = store.tumour_px() > 0
    num_foreground = int(foreground.sum())
    for share in (0.0, 0.3, 1.0):
        sampler = sampler_of(store, SampleConfig(empty_share=share), batch_size=1)
        drawn = sampler.epoch(0).ravel()
        assert sampler.num_slices == len(drawn) == num_foreground + round(share * (35 - num_foreground))
        assert set(np.flatnonzero(foreground)) <= set(drawn.tolist())
        np.testing.assert_array_equal(np.sort(drawn), np.sort(sampler.epoch(1).ravel()))


def test_slices_with_little_tumour_are_excluded(store: SliceStore) -> None:
    """Slices without any tumour are not: `empty_share` governs those."""
    tumour_px = store.tumour_px()
    # A slice with exactly that many pixels is kept.
    bound = int(np.sort(tumour_px)[-5])
    large, empty = np.flatnonzero(tumour_px >= bound), np.flatnonzero(tumour_px == 0)
    assert 0 < len(large) < (tumour_px > 0).sum()
    for share, expected in ((0.0, large), (1.0, np.union1d(large, empty))):
        sampler = sampler_of(store, SampleConfig(min_tumour_px=bound, empty_share=share), batch_size=1)
        assert sorted(sampler.epoch(0).ravel().tolist()) == expected.tolist()
    half = sampler_of(store, SampleConfig(min_tumour_px=bound, foreground_share=0.5))
    order = half.epoch(0)
    assert (np.isin(order, large).sum(axis=1) == 4).all()
    assert (np.isin(order, empty).sum(axis=1) == 4).all()


def test_only_allowed_slices_are_drawn(store: SliceStore) -> None:
    tumour_px, allowed = store.tumour_px(), np.arange(35) % 3 == 0
    for config in (SampleConfig(), SampleConfig(foreground_share=0.5, balance_cases=True)):
        sampler = EpochSampler(tumour_px, store.case_numbers(), config, 1, 0, allowed)
        assert sampler.num_slices == allowed.sum()
        drawn = np.concatenate([sampler.epoch(epoch).ravel() for epoch in range(9)])
        assert allowed[drawn].all()
    assert sorted(
        EpochSampler(tumour_px, store.case_numbers(), SampleConfig(), 1, 0, allowed).epoch(0).ravel()
    ) == [*np.flatnonzero(allowed)]


def test_balanced_cases_are_drawn_equally_often(make_stack: MakeStack) -> None:
    store = SliceStore([make_stack("A", 5), make_stack("B", 50), make_stack("C", 20)], CONFIG)
    config = SampleConfig(balance_cases=True, steps_per_epoch=500)
    counts = np.bincount(store.case_numbers()[sampler_of(store, config).epoch(0).ravel()])
    # 4000 draws with a probability of 1/3: five standard deviations are 149.
    np.testing.assert_allclose(counts, 4000 / 3, atol=149)
    plain = SampleConfig(steps_per_epoch=500)
    counts = np.bincount(store.case_numbers()[sampler_of(store, plain).epoch(0).ravel()])
    np.testing.assert_allclose(counts / 4000, np.array([5, 50, 20]) / 75, atol=0.01)


def test_a_fixed_number_of_steps_may_exceed_one_pass(store: SliceStore) -> None:
    sampler = sampler_of(store, SampleConfig(steps_per_epoch=12))
    order = sampler.epoch(0).ravel()
    assert len(order) == 96
    assert (np.bincount(order, minlength=35) >= 2).all()
    assert sampler.epoch(0, 3).shape == (3, 8)


def test_a_sampler_without_slices_is_an_error(make_stack: MakeStack) -> None:
    store = SliceStore([make_stack("A", with_mask=False)], CONFIG)
    with pytest.raises(DataError, match="No slice to train on"):
        sampler_of(store, SampleConfig(empty_share=0))
    # With a minimum, training would otherwise silently use only empty slices.
    for share in (0, 1):
        with pytest.raises(
            DataError, match=r"No training slice has 9 tumour pixels; lower sample.min_tumour_px"
        ):
            sampler_of(store, SampleConfig(empty_share=share, min_tumour_px=9))


def test_a_positive_foreground_share_is_at_least_one_slice(store: SliceStore) -> None:
    order = sampler_of(store, SampleConfig(foreground_share=0.5), batch_size=1).epoch(0)
    assert (store.tumour_px()[order] > 0).all()


@pytest.mark.parametrize("config", [SampleConfig(), SampleConfig(foreground_share=0.5, balance_cases=True)])
@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_all_ranks_form_the_global_batch(
    store: SliceStore, config: SampleConfig, count: int
) -> None:
    sampler = sampler_of(store, config)
    alone = SliceFeed(store, sampler, (0, 1), sampler.num_steps)
    ranks = [SliceFeed(store, sampler, (rank, count), sampler.num_steps) for rank in range(count)]
    for epoch in range(2):
        seen = []
        for whole, *parts in zip(alone.epoch(epoch), *(rank.epoch(epoch) for rank in ranks), strict=True):
            assert [len(part.images) for part in parts] == [8 // count] * count
            np.testing.assert_array_equal(torch.cat([part.images for part in parts]), whole.images)
            np.testing.assert_array_equal(torch.cat([part.masks for part in parts]), whole.masks)
            np.testing.assert_array_equal(np.concatenate([part.positions for part in parts]), whole.positions)
            seen.append(whole.positions)
        np.testing.assert_array_equal(np.concatenate(seen), np.arange(8 * sampler.num_steps))
