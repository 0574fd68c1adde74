"""The charts under the timeline."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from ci.report import timeseries
from ci.tools import plots
from steps.core.record import outcome
from steps.core.record.rundir import RunDir
from tests.faults.rehearse import Outcome, rehearse

pytest.importorskip("matplotlib")


def test_a_report_shows_both_sides_under_the_timeline(passed: Outcome) -> None:
    page = (passed.path / "report.html").read_text()
    for words in ("prefillers: requests running", "decoders: KV cache, % full"):
        assert words in page
    assert re.search(r"<title>decoders: tokens/s, 0 to \d+ s: ", page), "hovering shows values"
    over = outcome.read(RunDir(passed.path))
    every = list(timeseries.charts(over, over.verdict.seconds))
    assert len(every) == 8
    assert max(value for value in every[-1].highs if not math.isnan(value)) > 0


def test_a_run_without_telemetry_has_its_timeline(tmp_path: Path) -> None:
    found = rehearse("quickstart.yaml", tmp_path, "--bench", "none")
    for path in found.path.glob("node-*/telemetry.jsonl.gz"):
        path.unlink()
    assert list(timeseries.charts(outcome.read(RunDir(found.path)), 10.0)) == []


def test_one_x_axis_gaps_and_an_outlier() -> None:
    nan = float("nan")
    chart = plots.Chart(
        "decoders: x; apart: node-1 server",
        (0.0, 1.0, 2.0),
        (1.0, nan),
        (2.0, nan),
        (3.0, nan),
        ("first", "no <answer>"),
        (3.0, nan),
    )
    row = plots.Row("node-0", (plots.Bar(0, 2, "c", "bench", "node-0 bench"),), True)
    svg = plots.timeline([row], 1.5, "first error", [chart], [(0.5, 1.0)])
    assert svg.count("seconds into the run") == 1
    assert "<title>first</title>" in svg
    assert "<title>no &lt;answer&gt;</title>" in svg
    assert "apart: node-1 server" in svg


def test_every_plot_is_drawn_once_and_has_few_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laying it out by drawing, or axes for each chart, would take most of a report's time."""
    from matplotlib.figure import Figure

    axes: list[int] = []
    draw = Figure.draw

    def counted(figure: Figure, renderer: object) -> None:
        axes.append(len(figure.axes))
        draw(figure, renderer)

    monkeypatch.setattr(Figure, "draw", counted)
    row = plots.Row("node-0", (plots.Bar(0, 2, "c", "bench", "node-0 bench"),), True)
    chart = plots.Chart("x", (0.0, 1.0), (1.0,), (2.0,), (3.0,), ("first",))
    plots.timeline([row], charts=[chart] * 8)
    plots.percentiles("x", {"x": (1.0, 2.0, 3.0)}, "ms")
    plots.latencies("x", {"x": ((0.0, 1.0), (1.0, 2.0))})
    plots.trend("x", ((0.0, 1.0), (9e5, 2.0)), "ms")
    assert axes == [2, 1, 1, 1]
