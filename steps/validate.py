"""Find every problem of cases before they cost a device-minute.

Enters: case files. Leaves: problems: schema, then resolution on a neutral
cluster, then the linter's rules. Touches: reads the files, prints.

    python -m steps.validate configs/quickstart.yaml
    python -m steps.validate --format sarif configs/*.yaml > lint.sarif
    python -m steps.validate --explain MN406
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from steps.core import door, settings
from steps.core.case.build import build_case, cases_in, cases_left, choose
from steps.core.case.case import Case
from steps.core.case.excerpt import render_all, summary
from steps.core.case.source import Source, load_yaml
from steps.core.errors import (
    CaseError,
    Exit,
    Problem,
    Severity,
    UsageError,
    enough,
    errors_of,
    sort_problems,
)
from steps.core.plan import profile
from steps.core.plan.cluster import Cluster, loopback_nodes
from steps.core.plan.resolver import examine
from steps.core.redaction import here
from steps.lint import formats, partial, reference
from steps.lint.engine import USELESS_IGNORE, lint, lint_matrix

CONFIGS = Path("configs")
MATRIX = Path("ci/nightly.yaml")
PROFILES = "clusters"
#: Directories under ``configs`` that hold no cases.
NOT_CASES = (PROFILES, "data")
#: Files that are worth a process of their own.
SHARE = 40

#: What images for Ascend are known to define; a case may use it in its commands.
IMAGE_VARIABLES = (
    *settings.PASSED_THROUGH,
    "PATH",
    "PWD",
    "HOSTNAME",
    "ASCEND_OPP_PATH",
    "ASCEND_AICPU_PATH",
    "ASCEND_CUSTOM_OPP_PATH",
    "ATB_HOME_PATH",
    "TOOLCHAIN_HOME",
    "LD_PRELOAD",
    "SOC_VERSION",
    "PIP_INDEX_URL",
    "HF_HOME",
    "HF_TOKEN",
    "MODELSCOPE_CACHE",
    "LWS_WORKER_INDEX",
    "LWS_LEADER_ADDRESS",
    "LWS_GROUP_SIZE",
    "POD_IP",
    "POD_NAME",
    "NODE_NAME",
    "LOG_PREFIX",
    "BENCHMARK_JOB_NAME",
    "VLLM_CI_RUNNER",
    "FAIL_TAG",
)


def neutral_cluster(size: int) -> Cluster:
    """A cluster that no case depends on, with everything an image may define."""
    return Cluster(
        name="validate",
        backend="local",
        nodes=loopback_nodes(size, "71.9"),
        known={name: f"/{name.lower()}" for name in IMAGE_VARIABLES},
    )


def validate(
    paths: Iterable[Path | str], matrix: Path | str | None = None, only: str = ""
) -> list[Problem]:
    """Every problem of the cases, and of the matrix if one is named; in reading order."""
    paths = list(paths)
    processes = min(os.cpu_count() or 1, len(paths) // SHARE)
    if matrix is None and processes > 1:
        return _side_by_side(paths, processes)
    problems: list[Problem] = []
    cases: dict[Path, Case] = {}
    for path in paths:
        found, told = validate_one(Path(path), only)
        problems += told
        if found:
            cases[Path(path)] = found[0]
    if matrix is not None:
        problems += enough(lint_matrix(Path(matrix), cases))
    return sort_problems(problems)


def _side_by_side(paths: Sequence[Path | str], processes: int) -> list[Problem]:
    """Every problem of many files, on all cores; what is a secret in one is hidden in all."""
    from concurrent.futures import ProcessPoolExecutor

    shares = [paths[at : at + SHARE] for at in range(0, len(paths), SHARE)]
    pool = ProcessPoolExecutor(processes, initializer=_help, initargs=(os.getpid(),))
    problems: list[Problem] = []
    try:
        for told, learned in pool.map(_share, shares):
            problems += told
            for secret, name in learned:
                here().learn([secret], name)
    finally:
        pool.shutdown(cancel_futures=True)
    return sort_problems(problems)


def _help(parent: int) -> None:
    """A helper heeds no interrupt, its command ends it; and it never outlives that."""
    from steps.core.system import ancestry

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ancestry.end_with_parent()
    if os.getppid() != parent:  # it ended before that
        os._exit(int(Exit.INTERRUPTED))


def _share(paths: Sequence[Path | str]) -> tuple[list[Problem], tuple[tuple[str, str], ...]]:
    problems = [problem for path in paths for problem in validate_one(Path(path))[1]]
    return problems, here().learned


def validate_one(path: Path, only: str = "") -> tuple[list[Case], list[Problem]]:
    """The cases of a file that can be read at all, and all problems; or of a cluster's profile.

    Args:
        only: the case that is asked for, where there are several.
    """
    try:
        source = load_yaml(path)
        if path.parent.name == PROFILES or profile.is_one(source):
            return [], enough(profile.check(source))
    except CaseError as error:
        return [], list(error.problems)
    try:
        sources, form = cases_in(source), list[Problem]()
    except CaseError as error:
        sources, form = cases_left(source), list(error.problems)
    chosen = [choose(source.file, sources, only)] if only and not form else sources.values()
    each = [_validate_one(source) for source in chosen]
    told = Counter(problem for _, problems in each for problem in problems)
    # What cases share is told once; an ignore in it may be there for one of them alone.
    places = {(problem.rule, problem.place) for problem in told}
    form = [problem for problem in form if (problem.rule, problem.place) not in places]
    kept = form + [p for p, count in told.items() if p.rule != USELESS_IGNORE or count == len(each)]
    cases = [case for case, _ in each if case is not None]
    return cases, kept if len(each) == 1 and not form else enough(kept)


def _validate_one(source: Source) -> tuple[Case | None, list[Problem]]:
    try:
        case = build_case(source)
    except CaseError as error:
        more = _in_spite_of(error.problems, source)
        return None, enough([*error.problems, *more]) if more else list(error.problems)
    return case, enough(_asked(case))


def _asked(case: Case) -> list[Problem]:
    """What resolution and the rules say of a case."""
    try:
        plan, problems = examine(case, neutral_cluster(case.num_nodes))
    except CaseError as error:
        return list(error.problems)
    return [*problems, *lint(case, plan)]


def _in_spite_of(problems: Sequence[Problem], source: Source) -> list[Problem]:
    """What else can be said of a case that these problems of form refuse."""
    rest = partial.of(source, problems)
    if rest is None:
        return []
    return [*rest.problems, *filter(rest.asks, _asked(rest.case))]


def default_paths(root: Path = CONFIGS) -> list[Path]:
    """Every case under ``root``.

    Raises:
        UsageError: a directory below cannot be read, and what it holds would be left out.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(
            f"{error.filename}: cannot be read: {error.strerror}",
            "Check its permissions, or leave it out.",
        )

    return sorted(
        Path(place) / name
        for place, _, names in os.walk(root, onerror=refuse)
        for name in names
        if Path(name).suffix in (".yaml", ".yml")
        and not set(Path(place).relative_to(root).parts) & set(NOT_CASES)
    )


def run(
    files: Sequence[str] = (),
    *,
    style: str = "text",
    explain: str = "",
    matrix: str = "",
    strict: bool = False,
    only: str = "",
) -> int:
    """Print the problems of ``files`` (default: every case under configs).

    Args:
        style: ``text``, ``json``, ``github``, ``sarif`` or ``junit``.
        explain: a rule code; explains it instead.
        matrix: the matrix file; default: ci/nightly.yaml when all of configs is validated.
        strict: warnings count as errors.
        only: the case that is meant, of one file of several.

    Returns:
        0, or 2 when there is an error.

    Raises:
        UsageError: ``only`` does not say of which file.
    """
    if explain:
        try:
            print(reference.explain(explain))
        except KeyError:
            print(f"unknown rule {explain!r}; docs/rules.md lists all of them", file=sys.stderr)
            return Exit.USAGE
        return Exit.PASS
    named = [(name, _expand(Path(name))) for name in files]
    paths = [path for _, found in named for path in found]
    if not files:
        paths = [*default_paths(), *sorted((CONFIGS / PROFILES).glob("*.yaml"))]
    bare = [name for name, found in named if not found]
    if bare or not paths:
        where = ", ".join(bare) or f"{CONFIGS}; none were named"
        print(f"error: no case files (*.yaml, *.yml) in {where}", file=sys.stderr)
        return Exit.USAGE
    if only and len(paths) != 1:
        raise UsageError(f"--only {only}: found {len(paths)} files, expected one", "Name its file.")
    chosen = Path(matrix) if matrix else (MATRIX if not files and MATRIX.is_file() else None)
    problems = list(here().value(tuple(validate(paths, chosen, only))))
    failed = bool(problems if strict and _weighs(problems) else errors_of(problems))
    if style == "text":
        door.own(sys.stdout).write(text(problems, len(paths)))
    else:
        out = door.own(sys.stdout) if style == "github" else sys.stdout
        out.write(formats.FORMATS[style](problems, [str(path) for path in paths]))
    return Exit.USAGE if failed else Exit.PASS


def text(problems: Sequence[Problem], files: int) -> str:
    """The report for people."""
    what = f"{files} file{'s' if files != 1 else ''}"
    if not problems:
        return f"{what}: no problems\n"
    colour = sys.stdout.isatty() and not settings.read().no_color
    body = render_all(problems, colour=colour).rstrip("\n")
    return body.removesuffix(summary(problems)) + f"{what}: {summary(problems)}\n"


def _weighs(problems: Sequence[Problem]) -> bool:
    return any(problem.severity is not Severity.INFO for problem in problems)


def _expand(path: Path) -> list[Path]:
    try:
        return default_paths(path) if path.is_dir() else [path]
    except PermissionError:  # in a closed directory: reading the case will say so
        return [path]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="cases (default: all of configs)")
    parser.add_argument(
        "--format", dest="style", default="text", choices=("text", *formats.FORMATS), help="output"
    )
    parser.add_argument("--explain", default="", metavar="MN123", help="explain a rule and stop")
    parser.add_argument(
        "--matrix",
        default="",
        metavar="FILE",
        help="check this matrix too (default: ci/nightly.yaml with all of configs)",
    )
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")


main = door.Verb(
    "python -m steps.validate",
    "Find every problem of cases: form, resolution, and the fleet's rules. "
    "Exit code 0, or 2 when there is an error.",
    _options,
    lambda a: run(
        a.files, style=a.style, explain=a.explain, matrix=a.matrix, strict=a.strict, only=a.only
    ),
)


if __name__ == "__main__":
    sys.exit(main())
