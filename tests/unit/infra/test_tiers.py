"""Which tier a test belongs to, and how tests are dealt out to processes."""

from __future__ import annotations

import sys

import pytest


def test_a_test_is_of_its_folders_tier_and_has_a_time_limit(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("unit")
    assert request.node.get_closest_marker("timeout").args[0] >= 120


@pytest.mark.contracts
def test_a_marker_of_its_own_comes_before_its_folder(request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("unit")
    assert request.node.get_closest_marker("timeout").args[0] >= 600


def test_a_folder_of_tests_on_ray_stays_in_one_process_and_others_in_files(
    pytestconfig: pytest.Config,
) -> None:
    conftest = next(module for name, module in sys.modules.items() if name.endswith("tests.conftest"))
    scheduler = object.__new__(conftest._FilesScheduling)
    scopes = [
        scheduler._split_scope(f"tests/{test}")
        for test in (
            "e2e/test_a.py::test_x",
            "integration/test_b.py::test_y[1]",
            "unit/c/test_c.py::TestZ::test_z",
        )
    ]
    assert scopes == ["e2e", "integration", "tests/unit/c/test_c.py"]
