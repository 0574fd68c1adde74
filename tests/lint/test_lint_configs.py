"""Our own cases are clean: not even an info."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.validate import default_paths, validate


@pytest.mark.parametrize("path", default_paths(), ids=lambda path: path.stem)
def test_a_case_of_ours_is_clean(path: Path) -> None:
    assert [str(problem) for problem in validate([path])] == []


def test_there_are_cases() -> None:
    assert Path("configs/quickstart.yaml") in default_paths()
    assert len(default_paths()) >= 7
