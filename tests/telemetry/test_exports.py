"""What other tools read of a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.faults.rehearse import ROOT, Outcome

SAMPLE = re.compile(r'([a-z_0-9]+)\{(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+\} -?[0-9.e+-]+')


def test_both_exports_of_a_rehearsal(passed: Outcome, tmp_path: Path) -> None:
    path = shutil.copytree(passed.path, tmp_path / "run")
    argv = [sys.executable, "-m", "ci.report.exports", str(path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(path / n) for n in ("metrics.txt", "trace.json")]

    *lines, end = (path / "metrics.txt").read_text().splitlines()
    assert end == "# EOF"
    families: list[str] = []
    for line in lines:
        if line.startswith("# TYPE "):
            families.append(line.split()[2])
        else:
            match = SAMPLE.fullmatch(line)
            assert match and match[1] == families[-1], line
    assert len(families) == len(set(families))
    assert {"multinode_output_throughput", "multinode_run_passed"} <= set(families)

    trace = json.loads((path / "trace.json").read_text())["traceEvents"]
    kinds = Counter(event["ph"] for event in trace)
    assert kinds["b"] == kinds["e"] == 24
    assert kinds["C"] > 6
    spans = {(event["pid"], event["name"]) for event in trace if event["ph"] == "X"}
    assert {(0, "bench"), (1, "hold"), (0, "proxy"), (1, "server")} <= spans
    assert all(0 <= event["ts"] < 120e6 for event in trace if event["ph"] != "M")


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "ci.report.exports", str(tmp_path / "absent")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "no such run directory" in done.stderr
