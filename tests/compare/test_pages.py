"""Pages of comparisons and searches, with what others wrote in them."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ci.compare import bisect, compare, pages, trial
from ci.compare.pair import Started
from ci.run import main as run
from tests.compare.test_bisect import product, reads_words, steps

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
ODD = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in a variable."""
    home = tmp_path_factory.mktemp("runs")
    found = []
    for name in ("one", "two"):
        case = home / f"{name}.yaml"
        trial.write(Path("configs/quickstart.yaml"), [f"env_common.WHICH={name}"], 1, case)
        assert run([str(case), "--load-seconds", "0.2", "--run-dir", str(home / name)]) == 0
        found.append(home / name)
    return found


def page(home: Path) -> str:
    text = (home / "report.html").read_text()
    assert "<script" not in text
    assert re.findall(r'(?:src|href)="(?!#|data:)', text) == []
    return text


def test_a_comparison(tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = itertools.cycle((0.1, 0.3, 0.2))

    def start(case: Path, number: int, words: object, directory: Path) -> Started:
        directory.symlink_to(runs[number])
        values = {"chat output_throughput": (100 - 10 * number + next(noise),)}
        return Started(number, values, run=directory.name)

    monkeypatch.setattr(trial, "start", start)
    argv = ["quickstart.yaml", "--b-set", f"env_common.X={ODD}", "--dir", str(tmp_path)]
    assert compare.main(argv) == 1
    text = page(tmp_path)
    assert "B against A: worse" in text
    assert "chat output_throughput: a point for each start" in text
    assert "-9.9" in text or "-10.0" in text
    assert text.count("Timeline of all nodes and processes") == 2
    assert "-WHICH=one" in text and "+WHICH=two" in text
    assert "127." not in text[text.index("Difference of the plans</h2>") :]


def test_a_search(tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    repository = product(tmp_path, steps(16, 9, "100", "95"))

    def start(case: Path, number: int, words: object, directory: Path, env: object) -> Started:
        directory.symlink_to(runs[number >= 9])
        one = reads_words(case, number, words, directory, env)
        return Started(number, one.values, run=directory.name)

    monkeypatch.setattr(trial, "start", start)
    home = tmp_path / "out"
    argv = ["quickstart.yaml", "--repository", str(repository), "--good", "main~15"]
    assert bisect.main([*argv, "--dir", str(home)]) == 0
    text = page(home)
    assert "culprit: its parent was good" in text
    assert "change 9 | &lt;b&gt;" in text
    assert "chat output_throughput over 16 commits" in text
    assert "-WHICH=one" in text and "+WHICH=two" in text


@pytest.mark.parametrize("by", ["failure", "value"])
def test_a_search_that_found_nothing(tmp_path: Path, by: str) -> None:
    """Nothing measured, runs that are gone, commits that were left out."""
    commit = {"sha": "1" * 40, "subject": ODD, "weight": 1.0, "product": "p"}
    start: dict[str, Any] = {"variant": 1, "values": {}, "failure": "crash: x", "run": "gone"}
    content = {
        "answer": {"kind": "budget over", "why": ODD, "suspects": [{**commit, "odds": 0.5}]},
        "by": by,
        "searched": "crash: x" if by == "failure" else "chat output_throughput",
        "commits": [{**commit, "sha": "0" * 40}, commit],
        "starts": [start, {**start, "variant": 0}],
        "out": [1],
        "unclear": [],
        "device_minutes": [1.0],
    }
    pages.searched(tmp_path, json.loads(json.dumps(content)))
    text = page(tmp_path)
    assert "budget over" in text and "&lt;script&gt;" in text
    assert ("The walk" in text) is (by == "failure")
