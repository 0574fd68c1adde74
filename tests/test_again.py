"""Which failed tests CI asks once more, and what ``.ci/run`` says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import again

ROOT = Path(__file__).parents[1]
LATE = "import pytest\n@pytest.mark.timing\ndef test_late(): assert 0\ndef test_well(): pass\n"


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        (LATE, ["test_it.py::test_late"], ""),
        (LATE + "def test_wrong(): assert 0\n", [], "not asked again: test_it.py::test_wrong"),
        ("import nothing_of_that_name\n", [], "not "),
        ("def test_well(): pass\n", [], "ended with code 0"),
    ],
)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_only_what_is_bound_to_time_is_asked_again(text, names, reason, workers, tmp_path):
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    timing: late\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "tests.conftest", "."]
    subprocess.run(argv, cwd=tmp_path, env=env(), capture_output=True, check=False)
    found, said = again.judge((tmp_path / again.FILE).read_text())
    assert (found, reason in said) == (names, True), said


def test_many_late_ones_are_no_accident():
    failed = {f"test_{n}": True for n in range(again.MOST + 1)}
    assert again.judge(json.dumps({"exit": 1, "failed": failed}))[0] == []


def test_a_folder_of_processes_is_bound_to_time_and_others_are_not():
    asked = ["tests/proof", "tests/lint/test_lint_fix.py", "tests/test_again.py"]
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "timing", "--co", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "tests/proof/" in said
    assert "tests/lint/" not in said
    assert "tests/test_again.py" not in said


def env() -> dict[str, str]:
    """This repository's modules, from anywhere."""
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


NOX = """\
#!/bin/sh
echo "nox $*" >> log
case "$*" in
  "-s tests") exit $FIRST ;;
  "-s tests -- "*) exit $SECOND ;;
esac
"""
PYTHON = """\
#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && : > "$3/bin/activate" ;;
  "-m tests.again") [ -n "$NAMES" ] && echo "$NAMES" ;;
esac
"""


@pytest.mark.parametrize(
    ("first", "second", "names", "code", "last"),
    [
        (0, 0, "", 0, "none"),
        (1, 0, "a.py::b[c d]", 0, "a.py::b[c d]"),
        (1, 1, "a.py::b[c d]", 1, "a.py::b[c d]"),
        (1, 0, "", 1, "none"),
    ],
)
def test_ci_asks_once_more_and_says_so_last(first, second, names, code, last, tmp_path):
    programs = {"nox": NOX, "python3": PYTHON, "apt-get": "#!/bin/sh\n"}
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")],
        env={
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            "FIRST": str(first),
            "SECOND": str(second),
            "NAMES": names,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == f"tests asked once more, alone: {last}"
    calls = (tmp_path / "log").read_text().splitlines()
    assert "nox -s tests" in calls
    assert (f"nox -s tests -- -n 0 {names}" in calls) == bool(names)
    assert ("nox -s e2e_vllm -- --if-cached -k answers" in calls) == (code == 0)
