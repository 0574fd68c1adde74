"""The data set configurations that the installed AISBench has, read without importing it.

Enters: AISBench's program, a ``dataset_conf``. Leaves: what its configuration of that name says, as
JSON. Touches: reads files of AISBench's package, and runs their code with stand-ins for what they
import: importing AISBench takes half a minute, and needs its own environment.
"""

from __future__ import annotations

import builtins
import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from steps.core.case.numbers import dumps, loads

_WHERE = Path("ais_bench/benchmark/configs/datasets")
#: What configurations import besides AISBench's own: nothing of it touches anything.
_HARMLESS = ("copy", "json", "math", "re")


@dataclass(frozen=True)
class Packaged:
    """A ``dataset_conf`` of AISBench's own: one data set, or one for each subject."""

    name: str
    found: tuple[Mapping[str, Any], ...]
    images: bool = False

    @property
    def family(self) -> str:
        """The folder it stands in."""
        return self.name.split("/", 1)[0]

    @property
    def abbrs(self) -> tuple[str, ...]:
        """The names of its data sets in the results."""
        return tuple(str(entry["abbr"]) for entry in self.found)

    def entries(self, path: str) -> list[dict[str, Any]]:
        """AISBench's data set entries, reading from ``path``."""
        return [{**entry, "path": _inside(Path(path), entry.get("path"))} for entry in self.found]


def _inside(place: Path, said: Any) -> str:
    """Where in a data set's directory a configuration reads: ``ais_bench/datasets/NAME/REST``."""
    rest = Path(*Path(str(said or "")).parts[3:])
    inside = place / rest
    return str(inside if inside.exists() and place.is_dir() else place)


def roots(program: str, env: Mapping[str, str]) -> list[Path]:
    """Where configurations are: beside the program, or in the checkout that images have."""
    found = shutil.which(program, path=env.get("PATH"))
    bases = list(Path(found).parent.parent.glob("lib/python3*/site-packages")) if found else []
    home = env.get("BENCHMARK_HOME")
    places = [base / _WHERE for base in [*bases, *([Path(home)] if home else [])]]
    return [place for place in places if place.is_dir()]


def read(places: list[Path], name: str) -> Packaged:
    """The configuration of a name; the folder before the slash may be another, or left out.

    Raises:
        KeyError: there is none, or it cannot be read; the text says which.
    """
    last = name.rsplit("/", 1)[-1]
    for place in places:
        exact = place / f"{name}.py"
        files = [exact] if exact.is_file() else sorted(place.rglob(f"{last}.py"))
        for file in files:
            try:
                values = _run(file)
                lists = [v for key, v in values.items() if key.endswith("_datasets")]
                found = [entry for each in lists for entry in each]
                text = dumps(found)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise KeyError(f"dataset_conf: {file} cannot be read: {why}") from None
            if found:
                return Packaged(str(file.relative_to(place).with_suffix("")), tuple(loads(text)))
    where = ", ".join(map(str, places))
    why = f"which is not in {where}" if places else "and no AISBench"
    raise KeyError(f"dataset_conf: found '{name}', {why}")


class _Name(str):
    """A class or function of AISBench's, which is only named."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self} is called")


class _Module:
    """A module that is not imported: what is taken from it is its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(f"{self._name}.{name}")


def _run(file: Path, depth: int = 0) -> dict[str, Any]:
    """The variables of a configuration."""
    if depth > 20:
        raise RecursionError(f"{file} includes itself")

    def load(name: str, _g: Any, _l: Any, wanted: Any, level: int) -> Any:
        own = name.removeprefix(".".join(_WHERE.parts)).strip(".")
        if level or own != name:
            base = file.parents[level - 1] if level else _root(file)
            return SimpleNamespace(
                **_run(base.joinpath(*own.split(".")).with_suffix(".py"), depth + 1)
            )
        if name.startswith("mmengine"):
            return SimpleNamespace(read_base=contextlib.nullcontext)
        if name.startswith("ais_bench") and wanted:
            return _Module(name)
        if name in _HARMLESS:
            return __import__(name)
        raise ImportError(f"it imports {name}")

    code = compile(file.read_text(encoding="utf-8"), str(file), "exec")
    values = {"__builtins__": {**vars(builtins), "__import__": load, "open": None, "exec": None}}
    exec(code, values)  # a configuration of the program that is about to be run
    return {key: value for key, value in values.items() if not key.startswith("__")}


def _root(file: Path) -> Path:
    return next(parent for parent in file.parents if parent.parts[-4:] == _WHERE.parts)
