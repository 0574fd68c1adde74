"""The wheel: it has every file the rooms read, and works from another directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.core.cases import ROOT

ROOMS = ("steps", "ci", "k8s", "rehearsal")
SOURCES = (*ROOMS, "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
#: What pip says when it cannot reach an index for a newer setuptools.
OFFLINE = ("No matching distribution found for setuptools", "Could not find a version that sat")


def done(argv: list[str], place: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=place, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the wheel is installed, without what it depends on."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    own = tuple(map(int, version("setuptools").split(".")[:2])) >= (70, 1)
    alone = ["--no-build-isolation"] if own else []
    made = done([*PIP, "wheel", "--no-deps", *alone, "-w", str(place), str(source)], place)
    if not own and any(words in made.stderr for words in OFFLINE):
        pytest.skip("setuptools is older than 70.1, and no index has a newer one")
    assert made.returncode == 0, made.stderr
    (wheel,) = place.glob("multinode-*.whl")
    shutil.rmtree(source)
    into = ["--no-deps", "--no-index", "--target", str(place / "site")]
    installed = done([*PIP, "install", *into, str(wheel)], place)
    assert installed.returncode == 0, installed.stderr
    return place / "site"


def run(site: Path, place: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    return done([sys.executable, "-m", module, *words], place, PYTHONPATH=str(site))


def test_every_file_of_the_rooms_is_there_as_it_was(site: Path) -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                there = site / path.relative_to(ROOT)
                assert there.is_file(), f"{path.relative_to(ROOT)} is not in the wheel"
                assert os.access(there, os.X_OK) == os.access(path, os.X_OK), there


def test_it_works_from_another_directory(site: Path, tmp_path: Path) -> None:
    case = shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path / "mine.yaml")
    valid = run(site, tmp_path, "steps.validate", "mine.yaml")
    assert (valid.returncode, valid.stdout) == (0, "1 file: no problems\n"), valid.stderr
    words = (str(case), "--rehearse", "--load-seconds", "0.5")
    ran = run(site, tmp_path, "ci.run", *words, "--run-dir", "run")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = run(site, tmp_path, "steps.report", "--run-dir", "run", "--format", "json")
    assert json.loads(told.stdout)["verdict"] == "pass"
    assert (tmp_path / "run" / "report.html").is_file()
    failed = run(site, tmp_path, "ci.run", *words, "--fault", "crash@1:ready")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    bare = run(site, tmp_path, "ci.run", "quickstart.yaml", "--rehearse")
    assert bare.returncode == 2
    assert "no case 'quickstart.yaml'" in bare.stderr
    assert "Traceback" not in valid.stderr + ran.stderr + told.stderr + bare.stderr
