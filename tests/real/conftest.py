"""Asked for with ``-m real`` only; figures of all runs are printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.fleet import FIGURES

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark everything here as real, and skip it unless it was asked for."""
    asked = "real" in (config.option.markexpr or "")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.timeout(900))
            if not asked:
                item.add_marker(pytest.mark.skip(reason="real engines: nox -s e2e_vllm"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured."""
    if FIGURES:
        terminalreporter.section("figures")
        for line in FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A fresh directory for KV caches in files: an earlier run's would be found."""
    place = tmp_path / "shared"
    place.mkdir()
    monkeypatch.setenv("SHARED_STORAGE", str(place))
    yield place
