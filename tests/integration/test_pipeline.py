"""Cases through Ray: what is checked, described and placed by its tasks is what this process makes of the files."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.statistics import describe_case
from glioray.config import PLANES, PreprocessConfig
from glioray.engine.on_ray.data import check_cases, describe_cases, index_data
from glioray.engine.on_ray.placement import fill_cache, prepare_case
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack
from glioray.storage import open_storage

pytestmark = pytest.mark.usefixtures("ray_local")
CONFIG = PreprocessConfig(planes=PLANES, size=(96, 96))


def assert_same(found: SliceStack, expected: SliceStack) -> None:
    for name in ("case_id", "plane", "origin", "shape", "spacing_mm", "label_voxels"):
        assert getattr(found, name) == getattr(expected, name), name
    assert np.array_equal(found.images, expected.images)
    assert found.mask is not None
    assert expected.mask is not None
    assert np.array_equal(found.mask, expected.mask)


def test_filling_leaves_every_case_in_this_node_s_cache(phantom_data: Path, tmp_path: Path):
    manifest = index_data(str(phantom_data), str(tmp_path / "manifests"))
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    entries = manifest.select("all")[:2]
    assert fill_cache(manifest.data, entries, CONFIG, cache) == {}
    for entry in entries:
        kept = SliceCache(cache, CONFIG).get(entry)
        assert kept is not None
        for stack, other in zip(kept, prepare_case(manifest.data, entry, CONFIG), strict=True):
            assert_same(stack, other)


def test_no_case_is_no_work(tmp_path: Path):
    assert list(check_cases(str(tmp_path), [])) == []


def test_cases_described_elsewhere_are_those_described_here(phantom_data: Path):
    storage = open_storage(phantom_data)
    cases = discover_cases(storage)[0][:3]
    found = {
        case.case_id: (entry, case)
        for entry, _, case in describe_cases(str(phantom_data), cases, [cases[1].case_id])
        if entry and case
    }
    checked = {entry.case_id: entry for entry, _ in check_cases(str(phantom_data), cases) if entry}
    assert {name: entry for name, (entry, _) in found.items()} == checked
    for files in cases:
        expected = describe_case(load_case(storage, files))
        case = found[files.case_id][1]
        for name in ("convention", "brain_voxels", "label_voxels", "percentiles", "histograms"):
            assert np.array_equal(getattr(case, name), getattr(expected, name)), name
        assert (case.picture is not None) == (files is cases[1])


def test_a_mask_corrected_in_place_is_noticed(phantom_data: Path, tmp_path: Path):
    """It has the same size, and even the same time of modification."""
    data, manifests = tmp_path / "data", str(tmp_path / "manifests")
    shutil.copytree(phantom_data / "BraTS2021_90000", data / "BraTS2021_90000")
    packed = data / "BraTS2021_90000" / "BraTS2021_90000_seg.nii.gz"
    mask = packed.with_suffix("")
    original = gzip.decompress(packed.read_bytes())
    packed.unlink()
    mask.write_bytes(original)
    times = mask.stat()

    def write(content: bytes) -> None:
        mask.write_bytes(content)
        os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))

    before = index_data(str(data), manifests)
    assert index_data(str(data), manifests) == before
    voxels = np.frombuffer(original, np.uint8, offset=352)
    corrected = original[:352] + np.where(voxels == 1, 2, voxels).tobytes()
    write(corrected)
    after = index_data(str(data), manifests)
    assert (before.cases[0].label_voxels["ncr"] > 0, after.cases[0].label_voxels["ncr"]) == (True, 0)
    assert after.hash != before.hash

    # Read by the manifest of before, the file is refused and nothing is kept under the old checksum.
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    (lost,) = fill_cache(before.data, before.cases, CONFIG, cache).values()
    assert "_seg.nii: has changed since the manifest of its data set was made" in str(lost)
    assert not SliceCache(cache, CONFIG).has(before.cases[0])
    write(original)
    fill_cache(before.data, before.cases, CONFIG, cache)
    (kept, *_) = SliceCache(cache, CONFIG).get(before.cases[0]) or ()
    assert kept.mask is not None
    assert (kept.mask == 1).any()
