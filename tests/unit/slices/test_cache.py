"""The cache returns what was stored, also while others write, read or evict."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.load import Case
from glioray.cases.manifest import CaseEntry
from glioray.config import PLANES, PreprocessConfig
from glioray.errors import StorageError, UsageError
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack, preprocess

MakeCase = Callable[..., Case]
MakeEntry = Callable[..., CaseEntry]
MakeStack = Callable[..., SliceStack]
CONFIG = PreprocessConfig(size=(32, 48))


def cache_in(folder: Path, config: PreprocessConfig = CONFIG, disk_bytes: int = 1 << 30) -> SliceCache:
    return SliceCache(CacheConfig(folder=str(folder), disk_bytes=disk_bytes), config)


def check_same(found: tuple[SliceStack, ...] | None, expected: tuple[SliceStack, ...]) -> None:
    assert found is not None
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in dataclasses.fields(SliceStack):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(b, np.ndarray):
                assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
            else:
                assert a == b


@pytest.mark.parametrize("with_mask", [True, False])
def test_cached_equals_decoded(
    tmp_path: Path, make_case: MakeCase, make_entry: MakeEntry, with_mask: bool
) -> None:
    config = PreprocessConfig(size=(32, 32), planes=PLANES)
    stacks = preprocess(make_case(with_mask=with_mask), config)
    cache, entry = cache_in(tmp_path, config), make_entry()
    assert not cache.has(entry)
    assert cache.get(entry) is None
    cache.put(entry, stacks)
    assert cache.has(entry)
    check_same(cache.get(entry), stacks)


def test_arrays_are_mapped_and_cannot_be_written(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    cache, entry = cache_in(tmp_path), make_entry()
    cache.put(entry, [make_stack("A")])
    (stack,) = cache.get(entry) or ()
    assert isinstance(stack.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        stack.images[0] = 1


def test_an_entry_s_name_depends_on_contents_and_preprocessing(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    cache, stacks = cache_in(tmp_path), (make_stack("A"),)
    cache.put(make_entry(), stacks)
    assert cache.get(make_entry(checksum="d" * 64)) is None
    assert cache.get(make_entry("B")) is None
    assert cache.get(dataclasses.replace(make_entry(), convention="brats-et3")) is None
    for other in (
        PreprocessConfig(size=(48, 32)),
        PreprocessConfig(size=(32, 48), clip=(-10, 10)),
        PreprocessConfig(size=(32, 48), planes=("coronal",)),
        PreprocessConfig(size=(32, 48), normalize="none"),
    ):
        assert cache_in(tmp_path, other).get(make_entry()) is None
    # Neighbours are combined when a batch is drawn.
    check_same(cache_in(tmp_path, PreprocessConfig(size=(32, 48), neighbours=2)).get(make_entry()), stacks)


def test_a_case_id_may_contain_any_character(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    cache, entry = cache_in(tmp_path), make_entry("../site 1/Ä:x")
    stack = make_stack("../site 1/Ä:x")
    cache.put(entry, [stack])
    check_same(cache.get(entry), (stack,))
    assert [path.parent for path in tmp_path.rglob("meta.json")] == [next(cache.folder.iterdir())]


def test_a_second_writer_keeps_the_first_entry(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    cache, first = cache_in(tmp_path), (make_stack("A", 10),)
    cache.put(make_entry(), first)
    cache.put(make_entry(), [make_stack("A", 11)])
    check_same(cache.get(make_entry()), first)


RACER = """
import sys
import numpy as np
from glioray.cases.casefiles import CaseFiles
from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack

cache = SliceCache(CacheConfig(folder=sys.argv[1]), PreprocessConfig(size=(32, 48)))
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    files = CaseFiles(case_id=f"C{number}", patient_id="P", layout="brats2021", images={}, mask=None)
    entry = CaseEntry(files=files, checksum="c" * 64, checksums={}, shape=(1, 1, 1), spacing_mm=(1.0, 1.0, 1.0),
                      convention="brats-et4", label_voxels={}, brain_voxels=1)
    stack = SliceStack(case_id=files.case_id, plane="axial", images=np.full((40, 4, 32, 48), number, np.float16),
                       mask=np.full((40, 32, 48), number, np.uint8), origin=(0, 0, 0), shape=(60, 50, 40),
                       spacing_mm=(1.0, 1.0, 1.0), label_voxels=(0, 0, 0, 0, 0))
    cache.put(entry, [stack])
    assert cache.has(entry)
"""


@pytest.mark.contracts
def test_two_processes_fill_the_same_entries_while_a_third_reads(
    tmp_path: Path, make_entry: MakeEntry, repo: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": str(repo / "platform")}
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        cache, seen = cache_in(tmp_path), 0
        while any(racer.poll() is None for racer in racers):
            for number in range(30):
                seen += _is_whole(cache, make_entry(f"C{number}"), number)
        for racer in racers:
            assert racer.wait() == 0
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert all(_is_whole(cache, make_entry(f"C{number}"), number) for number in range(30))
    assert len(list(cache.folder.iterdir())) == 30


def _is_whole(cache: SliceCache, entry: CaseEntry, number: int) -> bool:
    """Whether the entry exists; if so, it must be complete."""
    stacks = cache.get(entry)
    if stacks is None:
        return False
    (stack,) = stacks
    assert stack.mask is not None
    assert (stack.images == number).all()
    assert (stack.mask == number).all()
    return True


FILLER = """
import sys, time
from pathlib import Path
import numpy as np
from glioray.cases.casefiles import CaseFiles
from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack

cache = SliceCache(CacheConfig(folder=sys.argv[1]), PreprocessConfig(size=(32, 48)))
print("ready", flush=True)
waits = sys.stdin.readline() == "hold\\n"

def decode():
    with open(sys.argv[2], "a") as log:
        log.write(f"{number}\\n")
    if waits:
        print("held", flush=True)
        sys.stdin.readline()
    return (SliceStack(case_id=files.case_id, plane="axial", images=np.full((40, 4, 32, 48), number, np.float16),
                       mask=np.full((40, 32, 48), number, np.uint8), origin=(0, 0, 0), shape=(60, 50, 40),
                       spacing_mm=(1.0, 1.0, 1.0), label_voxels=(0, 0, 0, 0, 0)),)

for number in range(30):
    files = CaseFiles(case_id=f"C{number}", patient_id="P", layout="brats2021", images={}, mask=None)
    entry = CaseEntry(files=files, checksum="c" * 64, checksums={}, shape=(1, 1, 1), spacing_mm=(1.0, 1.0, 1.0),
                      convention="brats-et4", label_voxels={}, brain_voxels=1)
    (stack,), _ = cache.fill(entry, decode)
    assert (stack.images == number).all()
"""


@pytest.mark.contracts
def test_processes_that_fill_at_once_decode_each_case_once_also_where_one_dies(
    tmp_path: Path, make_entry: MakeEntry, repo: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": str(repo / "platform")}
    log = tmp_path / "decoded"
    command = [sys.executable, "-c", FILLER, str(tmp_path / "cache"), str(log)]
    fillers = [
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    def tell(filler: subprocess.Popen[str], word: str) -> None:
        assert filler.stdin is not None
        filler.stdin.write(f"{word}\n")
        filler.stdin.flush()

    def expect(filler: subprocess.Popen[str], word: str) -> None:
        assert filler.stdout is not None
        assert filler.stdout.readline() == f"{word}\n"

    try:
        for filler in fillers:
            expect(filler, "ready")
        dies, *others = fillers
        tell(dies, "hold")
        expect(dies, "held")
        for filler in others:
            tell(filler, "go")
        assert log.read_text() == "0\n"
        dies.kill()
        for filler in others:
            assert filler.wait() == 0
    finally:
        for filler in fillers:
            filler.kill()
            filler.communicate()
    # The first case twice: by the process that died in the middle of it, and by one of the others.
    assert sorted(map(int, log.read_text().split())) == [0, *range(30)]
    cache = cache_in(tmp_path / "cache")
    assert all(_is_whole(cache, make_entry(f"C{number}"), number) for number in range(30))
    assert len(list(cache.folder.iterdir())) == 30


def test_a_case_that_cannot_be_decoded_leaves_no_lock(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    def fail() -> tuple[SliceStack, ...]:
        raise ValueError("damaged")

    cache, entry = cache_in(tmp_path), make_entry()
    with pytest.raises(ValueError, match="damaged"):
        cache.fill(entry, fail)
    assert list(cache.folder.iterdir()) == []
    stacks = (make_stack("A"),)
    assert cache.fill(entry, lambda: stacks) == (stacks, True)
    found, was_made = cache.fill(entry, fail)
    assert not was_made
    check_same(found, stacks)


def test_the_least_recently_used_entries_are_removed_and_mapped_arrays_stay_valid(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    stacks = {name: make_stack(name) for name in "ABCD"}
    cache = cache_in(tmp_path)
    for age, name in enumerate("CBA"):
        cache.put(make_entry(name), [stacks[name]])
        path = next(cache.folder.glob(f"{name}-*"))
        os.utime(path, (time.time() - 100 + age,) * 2)
    size = sum(file.stat().st_size for file in path.iterdir())
    mapped = cache.get(make_entry("C"))  # the oldest, but in use
    also_mapped = cache.get(make_entry("B"))
    os.utime(next(cache.folder.glob("B-*")), (time.time() - 1000,) * 2)
    small = cache_in(tmp_path, disk_bytes=int(2.5 * size))
    small.put(make_entry("D"), [stacks["D"]])
    assert {name for name in "ABCD" if small.has(make_entry(name))} == {"C", "D"}
    check_same(mapped, (stacks["C"],))
    check_same(also_mapped, (stacks["B"],))
    assert small.get(make_entry("B")) is None
    assert len(list(cache.folder.iterdir())) == 2


def test_the_newest_entry_stays_even_beyond_the_budget(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    cache = cache_in(tmp_path, disk_bytes=1)
    for name in "AB":
        cache.put(make_entry(name), [make_stack(name)])
        assert cache.has(make_entry(name))
    assert not cache.has(make_entry("A"))


def test_the_budget_covers_all_preprocessing_settings(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    one, other = (
        cache_in(tmp_path, PreprocessConfig(size=size), disk_bytes=1) for size in ((32, 48), (48, 32))
    )
    one.put(make_entry(), [make_stack("A")])
    other.put(make_entry(), [make_stack("A")])
    assert (one.has(make_entry()), other.has(make_entry())) == (False, True)


def test_leftovers_of_a_crashed_writer_are_removed_after_an_hour(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    cache = cache_in(tmp_path)
    crashed, at_work = cache.folder / ".A-cc.1.tmp", cache.folder / ".A-cc.2.tmp"
    for folder in (crashed, at_work):
        folder.mkdir(parents=True)
        (folder / "images-axial.npy").write_bytes(b"half")
    os.utime(crashed, (time.time() - 4000,) * 2)
    cache.put(make_entry(), [make_stack("A")])
    assert not crashed.exists()
    assert at_work.exists()


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry
) -> None:
    file = tmp_path / "cache"
    file.write_text("not a folder")
    cache = cache_in(file)
    assert not cache.has(make_entry())
    assert cache.get(make_entry()) is None
    for write in (
        lambda: cache.put(make_entry(), [make_stack("A")]),
        lambda: cache.fill(make_entry(), lambda: (make_stack("A"),)),
    ):
        with pytest.raises(
            StorageError, match=r"slice cache '.*' cannot be written \(Not a directory\); .* GLIORAY_CACHE"
        ):
            write()


@pytest.mark.parametrize("file", ["images-axial.npy", "mask-axial.npy", "meta.json"])
@pytest.mark.parametrize("size", [0, 40])
def test_a_damaged_entry_is_reported_in_one_sentence(
    tmp_path: Path, make_stack: MakeStack, make_entry: MakeEntry, file: str, size: int
) -> None:
    cache = cache_in(tmp_path)
    cache.put(make_entry(), [make_stack("A")])
    path = next(cache.folder.iterdir())
    (path / file).write_bytes((path / file).read_bytes()[:size])
    with pytest.raises(StorageError, match=r"cannot be read \(.*\); delete it"):
        cache.get(make_entry())


def test_a_folder_may_begin_with_a_variable_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIORAY_CACHE", "$NODE_DISK/slices")
    monkeypatch.delenv("NODE_DISK", raising=False)
    config = CacheConfig.from_environment()
    with pytest.raises(
        UsageError, match=r"GLIORAY_CACHE is '\$NODE_DISK/slices' but that variable is not set"
    ):
        SliceCache(config, CONFIG)
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert SliceCache(config, CONFIG).root == tmp_path / "slices"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert CacheConfig.from_environment().folder == "/x/glioray"
    monkeypatch.setenv("GLIORAY_CACHE", "/fast")
    monkeypatch.setenv("GLIORAY_CACHE_DISK_GB", "1.5")
    monkeypatch.setenv("GLIORAY_CACHE_MEMORY_GB", "0")
    expected = CacheConfig(folder="/fast", disk_bytes=3 << 29, memory_bytes=0)
    assert CacheConfig.from_environment() == expected


def test_variables_that_are_empty_or_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for name in ("XDG_CACHE_HOME", "GLIORAY_CACHE", "GLIORAY_CACHE_DISK_GB", "GLIORAY_CACHE_MEMORY_GB"):
        monkeypatch.setenv(name, "")
    assert CacheConfig.from_environment() == CacheConfig(folder="/h/.cache/glioray")
    monkeypatch.setenv("GLIORAY_CACHE", "~/fast")
    assert CacheConfig.from_environment().folder == "/h/fast"
    monkeypatch.setenv("GLIORAY_CACHE", "fast")
    assert CacheConfig.from_environment().folder == str(Path("fast").absolute())
    for name in ("GLIORAY_CACHE_DISK_GB", "GLIORAY_CACHE_MEMORY_GB"):
        for text in ("100GB", "-1", "nan", "inf", "1,5"):
            monkeypatch.setenv(name, text)
            with pytest.raises(UsageError, match=f"{name} is '{text}'; expected a number of GB"):
                CacheConfig.from_environment()
        monkeypatch.setenv(name, " ")


def test_entries_of_older_versions_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = CacheConfig(folder=str(tmp_path))
    now = SliceCache(config, PreprocessConfig())
    monkeypatch.setattr("glioray.slices.cache._VERSION", 1)
    assert SliceCache(config, PreprocessConfig()).folder != now.folder
