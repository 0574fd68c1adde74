"""What AISBench reads: a data set and a tokenizer on this machine.

Enters: a benchmark. Leaves: :class:`Material`. Touches: looks into the hubs'
caches; writes into the benchmark's directory what a rehearsal makes up, or a
data set whose picture paths have been made absolute.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steps.bench_drivers import practice
from steps.bench_drivers.aisbench.catalogue import DataSet
from steps.bench_drivers.aisbench.package import Packaged
from steps.bench_drivers.hub import DATASET, MODEL, Hub, NotHere
from steps.core.case.case import Benchmark
from steps.core.case.numbers import dumps, loads
from steps.core.plan.plan import LEADER, Plan
from steps.core.vllm import commandline

#: Questions of a made-up data set, when the benchmark asks for all of it.
REHEARSED = 32


class NotMadeUp(LookupError):
    """A rehearsal has no questions for a data set."""


@dataclass(frozen=True)
class Material:
    """Where AISBench reads from; ``size`` is how many questions there are, 0: nobody counted."""

    data: Path
    size: int
    tokenizer: Path | None = None


def find(plan: Plan, benchmark: Benchmark, data: DataSet | Packaged, hub: Hub) -> Material:
    """What is on this machine.

    Raises:
        NotHere: something is not; the text names all that is missing.
    """
    missing: list[str] = []
    path, size, tokenizer = Path(), 0, None
    try:
        path, size = located(hub.find(DATASET, wanted_data(benchmark), bases(plan)), data)
    except NotHere as error:
        missing.append(str(error))
    if benchmark.case_type == "performance":
        try:
            tokenizer = found_tokenizer(plan, benchmark, hub)
        except NotHere as error:
            missing.append(f"AISBench needs the tokenizer: {error}")
    if missing:
        raise NotHere("; ".join(missing))
    return Material(path, size, tokenizer)


def made_up(benchmark: Benchmark, data: DataSet | Packaged, directory: Path) -> Material:
    """What a rehearsal uses: questions and a tokenizer of our own making.

    Raises:
        NotMadeUp: nobody here makes up questions of that kind.
    """
    if data.family not in practice.FAMILIES:
        raise NotMadeUp(f"nobody here makes up questions of {data.family}")
    count = benchmark.num_prompts or REHEARSED
    where = practice.write_dataset(data.family, directory / "data", count)
    path, size = located(where, data)
    return Material(path, size, practice.write_tokenizer(directory / "tokenizer"))


def wanted_data(benchmark: Benchmark) -> str:
    """The data set as the case names it; a local path comes before a hub id."""
    return benchmark.dataset_path_local or benchmark.dataset_path


def wanted_models(plan: Plan, benchmark: Benchmark) -> list[str]:
    """Names under which the tokenizer may be found, the best first."""
    names = [benchmark.model_path] if benchmark.model_path else []
    for process in plan.nodes[LEADER].processes:
        if process.kind == "server":
            command = commandline.read(process.argv)
            names += [name for name in (command.text("--tokenizer"), command.model) if name]
    return list(dict.fromkeys([*names, plan.model]))


def bases(plan: Plan) -> list[Path]:
    """What relative paths of a case are relative to."""
    return [Path(plan.case_file).resolve().parent, Path.cwd()]


def located(place: Path, data: DataSet | Packaged) -> tuple[Path, int]:
    """What AISBench is to be given of a data set found at ``place``, and its size.

    Only AISBench knows what a configuration reads that is in no catalogue of ours.

    Raises:
        NotHere: the files that this family has are not there, or cannot be read.
    """
    if isinstance(data, Packaged):
        return place.resolve(), 0
    root = place.parent if place.is_file() else place
    found: list[Path] = []
    for names in data.files:
        there = [root / name for name in names if (root / name).is_file()]
        if not there:
            raise NotHere(
                f"the data set at {place} is no {data.family}: {' or '.join(names)} is missing; "
                f"{data.name} reads {', '.join(names[0] for names in data.files)}"
            )
        found.append(there[0])
    path = root if data.path is None else found[data.path]
    try:
        size = _count(found[data.counted])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NotHere(f"the data set at {place} cannot be read: {error}") from None
    if size == 0:
        raise NotHere(f"the data set at {place} has no question")
    return path.resolve(), size


def _count(path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as source:
        if path.suffix == ".csv":
            return sum(1 for row in csv.reader(source) if len(row) > 7 and row[7] != "Question")
        return sum(1 for line in source if line.strip())


def found_tokenizer(plan: Plan, benchmark: Benchmark, hub: Hub) -> Path:
    """The directory of the tokenizer.

    Raises:
        NotHere: it is nowhere.
    """
    reasons: list[str] = []
    for name in wanted_models(plan, benchmark):
        try:
            return hub.find(MODEL, name, bases(plan)).resolve()
        except NotHere as error:
            reasons.append(str(error))
    raise NotHere("; ".join(reasons))


def absolute_images(material: Material, directory: Path) -> Material:
    """The data set with the pictures' paths made absolute; AISBench opens them as they stand.

    Raises:
        NotHere: a picture is nowhere, or a line names none.
    """
    source = material.data
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / source.name
    with source.open(encoding="utf-8-sig") as lines, target.open("w", encoding="utf-8") as out:
        for number, line in enumerate(lines, 1):
            try:
                entry = loads(line)
                entry["image"] = str(_image(Path(entry["image"]), source.parent))
            except NotHere:
                raise
            except (ValueError, KeyError, TypeError) as error:
                said = f"{source.name}:{number}: {type(error).__name__}: {error}"
                raise NotHere(f"the data set cannot be read: {said}") from None
            out.write(dumps(entry) + "\n")
    answers = f"{source.stem}_annotations.json"
    shutil.copyfile(source.parent / answers, directory / answers)
    return Material(target.resolve(), material.size, material.tokenizer)


def _image(path: Path, near: Path) -> Path:
    """A picture whose path was written on another machine: by its tail, near the data set."""
    places = list(_tails(path, near))
    for place in places:
        if place.is_file():
            return place.resolve()
    raise NotHere(f"the picture {path} of the data set is not here; looked near {near}")


def _tails(path: Path, near: Path) -> Iterator[Path]:
    if path.is_absolute():
        yield path
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for root in (near, near.parent):
        for start in range(len(parts)):
            yield root.joinpath(*parts[start:])
