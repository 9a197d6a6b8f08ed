"""The report on a data set, from statistics written by hand."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.layouts import discover_cases
from glioray.cases.manifest import CaseEntry, Manifest, build_manifest, check_case
from glioray.cases.phantom import write_phantoms
from glioray.cases.statistics import PERCENTILES, ZSCORE_EDGES, CasePicture, CaseStatistics
from glioray.config import PreprocessConfig
from glioray.reports.data_figures import MAX_PICTURES, choose_pictured, data_figures
from glioray.reports.data_report import preparation_figures, report_page
from glioray.storage import open_storage

LABELS = {"ncr": 10, "ed": 20, "et": 30, "rc": 0}


def entry(case_id: str, convention: str | None = "brats-et4", layout: str = "brats2021") -> CaseEntry:
    return CaseEntry(
        files=CaseFiles(
            case_id=case_id,
            patient_id=case_id,
            layout=layout,
            images=dict.fromkeys(("t1", "t1c", "t2", "flair"), "key"),
        ),
        checksum=case_id,
        checksums={},
        shape=(8, 9, 4),
        spacing_mm=(2.0, 1.0, 1.0),
        convention=convention,
        label_voxels=LABELS if convention else {},
        brain_voxels=200,
    )


def described(case_id: str, *, picture: bool = False, **labels: list[int]) -> CaseStatistics:
    """Four axial slices, three of them through the brain."""
    voxels = np.zeros((4, 5), np.int64)
    for name, values in labels.items():
        voxels[:, ("background", "ncr", "ed", "et", "rc").index(name)] = values
    return CaseStatistics(
        case_id=case_id,
        modalities=("t1", "t1c", "t2", "flair"),
        convention="brats-et4",
        spacing_mm=(2.0, 1.0, 1.0),
        brain_voxels=np.array([0, 40, 40, 20]),
        label_voxels=voxels,
        percentiles=np.tile(np.arange(len(PERCENTILES), dtype=float), (4, 1)),
        histograms=np.ones((4, len(ZSCORE_EDGES) - 1), np.int64),
        picture=CasePicture(
            images=np.full((4, 6, 5), 9, np.uint8), labels=np.full((6, 5), 2, np.uint8), index=1
        )
        if picture
        else None,
    )


def manifest_of(*entries: CaseEntry, problems: tuple[Problem, ...] = ()) -> Manifest:
    return build_manifest("s3://bucket/brats", [(None, list(problems)), *((e, []) for e in entries)])


@pytest.fixture
def manifest() -> Manifest:
    return manifest_of(entry("a"), entry("b"))


STATISTICS = [
    described("b", ed=[0, 0, 5, 0], ncr=[0, 0, 0, 1]),
    described("a", ed=[0, 10, 10, 0], et=[0, 3, 0, 0], ncr=[0, 1, 0, 0]),
]


class _Page(HTMLParser):
    """Collects tags and sources; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_absent_labels_figure_shows_shares_of_slices_and_cases(manifest: Manifest):
    figure, caption = data_figures(manifest, STATISTICS)["absent_labels"]
    (axes,) = figure.axes
    # Of six slices through the brain, two hold NCR, three ED, one ET; one of two cases holds no ET.
    assert [text.get_text() for text in axes.texts] == [
        "66.7 %",
        "0.0 %",
        "50.0 %",
        "0.0 %",
        "83.3 %",
        "50.0 %",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["NCR", "ED", "ET"]
    assert caption == "Of 6 axial slices through the brain, 33.3 % hold no tumour. No ET at all: b."


def test_volumes_are_in_ml_and_areas_in_cm2(manifest: Manifest):
    figures = data_figures(manifest, STATISTICS)
    (bars,) = figures["label_volumes"][0].axes
    heights = {box.get_label(): [bar.get_height() for bar in box] for box in bars.containers}
    # Voxels of 2 mm³, case a first.
    assert heights["NCR"] == pytest.approx([0.002, 0.002])
    assert heights["ED"] == pytest.approx([0.04, 0.01])
    assert heights["ET"] == pytest.approx([0.006, 0])
    assert bars.get_ylim() == pytest.approx((0, 1.05 * 0.048))
    (curves,) = figures["tumour_area"][0].axes
    first = np.asarray(curves.lines[0].get_ydata())
    # 14, 10 and 0 voxels of 2 mm² from the lowest slice of the brain to the highest.
    assert first[[0, 50, 100]] == pytest.approx([0.28, 0.20, 0])
    assert figures["label_volumes"][1].startswith("Volume of each label by case. NCR: median 0.0 ml.")


def test_thousands_of_cases_are_drawn_as_outlines():
    names = [f"c{i:04d}" for i in range(60)]
    cases = [described(name, ed=[0, i, 0, 0]) for i, name in enumerate(names)]
    figures = data_figures(manifest_of(*map(entry, names)), cases)
    (bars,) = figures["label_volumes"][0].axes
    assert len(bars.containers) == 0
    assert len(bars.patches) == 3
    assert bars.get_xlabel() == "cases, by decreasing tumour volume"
    outline = next(patch for patch in bars.patches if patch.get_label() == "ED").get_data()
    assert outline.values.tolist() == sorted(outline.values, reverse=True)
    (curves,) = figures["tumour_area"][0].axes
    assert len(curves.lines) == 24 + 1
    assert "24 of 60, evenly spaced" in figures["tumour_area"][1]


def test_labels_follow_the_manifests_conventions():
    """The statistics of a case say 2021, the manifest 2024, whose label 4 is a cavity."""
    entries = [
        dataclasses.replace(entry("a"), convention="brats2024", label_voxels={**LABELS, "et": 0, "rc": 30})
    ]
    manifest = dataclasses.replace(manifest_of(entry("a")), cases=tuple(entries))
    figure, caption = data_figures(manifest, STATISTICS[1:])["absent_labels"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["NCR", "ED", "ET", "RC"]
    assert "No ET at all: a" in caption


@pytest.mark.contracts
def test_page_loads_nothing_from_elsewhere(manifest: Manifest):
    cases = [described("a", picture=True, ed=[0, 1, 0, 0]), described("b", picture=True, ed=[0, 1, 0, 0])]
    page = _Page(text := report_page(manifest, data_figures(manifest, cases)))
    assert page.tags.count("img") == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "a", "iframe"} & set(page.tags)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    for fact in (
        "2 of 2 patients, 2 with a mask",
        "8 × 9 × 4 (2)",
        "2 × 1 × 1 (2)",
        "brats-et4 (2)",
        "brats2021 (2)",
    ):
        assert fact in text
    assert "<p>None.</p>" in text
    assert manifest.hash in text


@pytest.mark.contracts
def test_names_are_escaped():
    evil = '<script>alert("x")</script>&'
    problem = Problem(case_id=evil, file="f", found="is <b>bad</b>", advice="drop it")
    manifest = manifest_of(entry(evil), problems=(problem,))
    manifest = dataclasses.replace(manifest, data=f"s3://{evil}")
    text = report_page(manifest, data_figures(manifest, [described(evil, picture=True)]))
    tags = _Page(text).tags
    assert not {"script", "b"} & set(tags)
    assert "&lt;script&gt;" in text


def test_long_lists_are_shortened():
    problems = tuple(Problem(case_id=f"c{i:03d}", file="", found="bad", advice="drop") for i in range(250))
    entries = [dataclasses.replace(entry(f"e{i}"), shape=(8, 9, i + 1)) for i in range(12)]
    text = report_page(manifest_of(*entries, problems=problems), {})
    assert text.count("<li>") == 200
    assert "And 50 more; they are all in the manifest." in text
    assert "and 2 others" in text


def test_pictured_cases_are_evenly_spaced():
    names = [f"c{i}" for i in range(1000)]
    chosen = choose_pictured(names)
    assert len(chosen) == MAX_PICTURES
    assert (chosen[0], chosen[-1]) == ("c0", "c999")
    gaps = np.diff([names.index(name) for name in chosen])
    assert gaps.max() - gaps.min() <= 1
    assert choose_pictured(names[:3]) == names[:3]
    assert choose_pictured([]) == []
    manifest = manifest_of(*(entry(f"c{i}") for i in range(9)))
    cases = [described(f"c{i}", picture=i % 2 == 0) for i in range(9)]
    figures = data_figures(manifest, cases)
    assert figures["cases_1"][1].startswith("Cases 1 to 5 of 5 shown, evenly spaced among 9:")


def test_page_of_a_data_set_without_masks_or_without_cases():
    bare = dataclasses.replace(described("a"), convention=None)
    unlabelled = manifest_of(entry("a", convention=None))
    figures = data_figures(unlabelled, [bare])
    assert list(figures) == ["intensities"]
    assert "no mask (1)" in report_page(unlabelled, figures)
    nothing = manifest_of(problems=(Problem(case_id="a", file="", found="bad", advice="drop"),))
    assert data_figures(nothing, []) == {}
    assert "0 of 0 patients" in report_page(nothing, {})


def test_preparation_is_shown_on_the_first_labelled_case(tmp_path: Path):
    storage = open_storage(tmp_path)
    write_phantoms(storage, num_cases=2, shape=(48, 48, 24))
    manifest = build_manifest(
        storage.uri, [check_case(storage, files) for files in discover_cases(storage)[0]]
    )
    config = PreprocessConfig(size=(64, 64), percentiles=(1.0, 80.0))
    ((name, (figure, caption)),) = preparation_figures(manifest, config).items()
    assert name == "preparation"
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["before", "after"]
    assert caption == (
        "Case BraTS2021_90000 as stored in its files, and as the network's input, preprocessed with size = (64, 64), "
        "percentiles = (1.0, 80.0)."
    )
    default = PreprocessConfig()
    assert preparation_figures(manifest, default)["preparation"][1].endswith(
        "preprocessed with the default settings."
    )
