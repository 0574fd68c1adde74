"""The nightly matrix against the cases it names. These rules take a ``Matrix``."""

from __future__ import annotations

from collections.abc import Iterator

from steps.core.errors import Severity
from steps.lint.matrix import Entry, Matrix
from steps.lint.registry import Finding, rule


@rule("MN801", Severity.ERROR, "Matrix names a file that does not exist")
def file_exists(matrix: Matrix) -> Iterator[Finding]:
    """Each entry's `case` is a file: from the repository's root, or under `configs/`."""
    for entry in matrix.entries:
        if entry.path is None:
            yield Finding(
                f"{entry.soc}: {entry.name} names {entry.written or 'no case'}, which does not "
                "exist",
                entry.case_place,
                "Correct the path.",
            )


@rule("MN802", Severity.ERROR, "Matrix size is not num_nodes")
def size_is_real(matrix: Matrix) -> Iterator[Finding]:
    """Each entry's `size` is its case's `num_nodes`: so many pods are started."""
    for entry in matrix.entries:
        if entry.size is None or entry.num_nodes is None or entry.size == entry.num_nodes:
            continue
        case = next((case for file, case in matrix.cases.items() if file == entry.path), None)
        yield Finding(
            f"{entry.soc}: {entry.name} has size {entry.size}, {entry.written} has num_nodes "
            f"{entry.num_nodes}",
            entry.size_place,
            f"Write size: {entry.num_nodes}.",
            (case.place("num_nodes"),) if case else (),
        )


@rule("MN803", Severity.WARNING, "Case in no matrix")
def every_case_runs(matrix: Matrix) -> Iterator[Finding]:
    """Each case is run by an entry of the matrix, or listed under `excluded` with a reason, or
    ignores this rule itself."""
    used = {entry.path.resolve() for entry in matrix.entries if entry.path is not None}
    for file, case in matrix.cases.items():
        names = {file.stem, file.name, str(file), file.as_posix().removeprefix("configs/")}
        if file.resolve() in used or names & set(matrix.excluded):
            continue
        yield Finding(
            f"no entry of {matrix.source.file} runs this case",
            case.source.place(),
            "Add an entry, or list it under 'excluded' with the reason.",
        )


@rule("MN804", Severity.ERROR, "Matrix name given twice")
def names_unique(matrix: Matrix) -> Iterator[Finding]:
    """Names become names of jobs and of clusters' objects: each is used once."""
    seen: dict[str, Entry] = {}
    for entry in matrix.entries:
        first = seen.setdefault(entry.name, entry)
        if first is not entry:
            yield Finding(
                f"{entry.soc}: the name {entry.name} is used twice",
                entry.place,
                "Give each entry its own.",
                (first.place,),
            )
