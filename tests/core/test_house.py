"""The house: imports point downwards, the environment is read in one place, starts are quick."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.core.cases import ROOT

#: From the top of the house to its ground; a module imports its own floor and those below.
FLOORS = (
    "ci",  # its top: run, replay, doctor, tasks
    "ci.report",
    "ci.backends",
    "ci.nightly",
    "ci.tools",
    "k8s",
    "steps",  # its top: the verbs
    "steps.checks",
    "steps.sizing",
    "steps.bench_drivers",
    "steps.lint",
    "steps.core.node",
    "steps.core.record",
    "steps.core.plan",
    "steps.core.vllm",
    "steps.core.case",
    "steps.core.system",
    "steps.core",  # its top: door, errors, foreign, redaction, settings
)
ROOMS = ("steps", "ci", "k8s", "rehearsal")
MOST = {"modules": 14, "lines": 500, "lines of a function": 60, "methods": 25}
HEAVY = ("kubernetes", "rich", "jinja2", "junit_xml", "nox", "hypothesis")
#: Where a program may sleep: it waits for others, and has no run to wait in.
MAY_SLEEP = {
    "ci/nightly/history.py",  # between two tries to push
    "ci/backends/hosts/ssh.py",  # between two tries to connect
    "ci/report/junit.py",  # until another run has added to the same file
    "ci/backends/local.py",  # until a guard has done its work
    "k8s/harvest.py",  # between two tries of a broken connection
    "k8s/cleanup.py",  # until the cluster has deleted
    "k8s/fetch.py",  # between two tries to fetch
    "k8s/pod.py",  # until the node program has ended; nothing of ours is there to wait with
    "steps/core/node/leftovers.py",  # until what it killed is gone
}
#: Where else the environment is read: pod.py runs before the harness is unpacked.
MAY_READ_ENVIRONMENT = {"steps/core/settings.py", "k8s/pod.py"}


def modules(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py") if (ROOT / f).is_dir())


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a module's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Full names that a module imports."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor_of(module: str) -> int | None:
    """How far below the roof a module stands; None when it is not ours."""
    return max(
        (height for height, floor in enumerate(FLOORS) if f"{module}.".startswith(f"{floor}.")),
        key=lambda height: len(FLOORS[height]),
        default=None,
    )


@cache
def links(path: Path) -> tuple[tuple[str, int], ...]:
    """Our modules that a module imports, at its top or later, each with the line."""
    return tuple(
        (f"{module}.{alias.name}" if f"{module}.{alias.name}" in paths() else module, node.lineno)
        for node in nodes_of(path)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        for module in [node.module or "" if isinstance(node, ast.ImportFrom) else alias.name]
    )


@cache
def paths() -> dict[str, Path]:
    """Every module of ours by its full name."""
    return {name_of(path): path for path in modules(*ROOMS)}


@pytest.mark.parametrize("path", modules("ci", "k8s", "steps"), ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    own = floor_of(name_of(path))
    assert own is not None
    for module, line in links(path):
        other = floor_of(module)
        place = f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert other is None or other >= own, f"{place}, above {FLOORS[own]}"
        assert not module.startswith(("tests", "rehearsal")), place


def test_there_is_no_import_cycle() -> None:
    graph = {
        name: {module: line for module, line in links(path) if module in paths()}
        for name, path in paths().items()
    }
    while True:  # what imports nothing that is left, or is imported by nothing left, is in no cycle
        imported = {module for needed in graph.values() for module in needed}
        kept = {
            name: needed
            for name, needed in graph.items()
            if name in imported and needed.keys() & graph.keys()
        }
        if kept.keys() == graph.keys():
            break
        graph = kept
    where = [
        f"{paths()[name].relative_to(ROOT)}:{line} imports {module}"
        for name, needed in graph.items()
        for module, line in needed.items()
        if module in graph
    ]
    assert not where, "a cycle:\n" + "\n".join(where)


def sizes() -> Iterator[tuple[str, str, int]]:
    """What can be too large: its name, what is counted, how many."""
    for folder in sorted({path.parent for path in modules(*ROOMS)}):
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        yield str(folder.relative_to(ROOT)), "modules", count
    for path in modules("steps", "ci", "k8s"):
        where = str(path.relative_to(ROOT))
        yield where, "lines", len(path.read_text(encoding="utf-8").splitlines())
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                yield f"{where} {node.name}", "lines of a function", length
            elif isinstance(node, ast.ClassDef):
                methods = sum(isinstance(n, ast.FunctionDef) for n in node.body)
                yield f"{where} {node.name}", "methods", methods


def too_large() -> dict[str, str]:
    return {
        name: f"{name}: {count} {kind}, at most {MOST[kind]}"
        for name, kind, count in sizes()
        if count > MOST[kind]
    }


def test_nothing_is_larger_than_one_can_read() -> None:
    assert not too_large()


def test_the_top_of_the_core_is_small() -> None:
    assert sorted(path.name for path in (ROOT / "steps/core").glob("*.py")) == [
        "__init__.py",
        "door.py",
        "errors.py",
        "foreign.py",
        "redaction.py",
        "settings.py",
    ]


#: What ``steps.node`` chains, and what only people type.
VERBS = {"validate", "resolve"} | {
    module.partition(".")[2]
    for module in imports(ROOT / "steps" / "node.py")
    if re.fullmatch(r"steps\.(?!core)\w+", module) and module not in FLOORS
}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verbs_do_not_know_one_another(verb: str) -> None:
    known = {f"steps.{other}" for other in (*VERBS, "node")} - {f"steps.{verb}"}
    assert not known & set(imports(ROOT / "steps" / f"{verb}.py"))


def test_the_core_knows_no_verb_and_no_backend() -> None:
    for path in modules("steps/core"):
        for module in imports(path):
            outside = module.startswith(("ci", "k8s", "steps")) and module != "steps"
            assert not outside or f"{module}.".startswith("steps.core."), f"{path}: {module}"


def test_the_rehearsal_imports_nothing_of_ours() -> None:
    for path in modules("rehearsal"):
        for module in imports(path):
            assert not module.startswith(("steps", "ci", "k8s", "tests")), f"{path}: {module}"


def test_heavy_packages_are_imported_only_where_they_are_used() -> None:
    for path in modules("steps", "rehearsal"):
        found = {module.split(".")[0] for module in imports(path)}
        used = {"junit_xml"} if path.name == "formats.py" else set()  # when it is asked for
        assert not found & set(HEAVY) - used, path


def test_the_environment_is_read_in_one_place() -> None:
    for path in modules("steps", "ci", "k8s"):
        if str(path.relative_to(ROOT)) in MAY_READ_ENVIRONMENT:
            continue
        for node in nodes_of(path):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read = (node.value.id, node.attr)
                assert read not in (("os", "environ"), ("os", "getenv")), f"{path}:{node.lineno}"


def test_the_rehearsal_reads_its_environment_in_one_place() -> None:
    readers = {p.name for p in modules("rehearsal") if "os.environ" in p.read_text("utf-8")}
    assert readers <= {"settings.py", "make_flags.py", "memcache_hybrid.py"}


def test_nobody_polls_by_sleeping() -> None:
    for path in modules("steps", "ci", "k8s"):
        if str(path.relative_to(ROOT)) in MAY_SLEEP:
            continue
        for node in nodes_of(path):
            sleeps = (
                isinstance(node, ast.Attribute)
                and node.attr == "sleep"
                and isinstance(node.value, ast.Name)
                and node.value.id == "time"
            )
            assert not sleeps, f"{path}:{getattr(node, 'lineno', 0)}"


def test_every_module_says_what_it_is() -> None:
    for path in modules("steps", "ci", "k8s", "rehearsal", "benchmarks"):
        text = path.read_text(encoding="utf-8")
        assert not text or ast.get_docstring(ast.parse(text)), path


@pytest.mark.parametrize("statement", ["import steps.node", "import tasks", "import ci.run"])
def test_commands_start_without_heavy_packages(statement: str) -> None:
    probe = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = set(HEAVY) - ({"junit_xml"} if "ci" in statement else set())
    assert not loaded & heavy
    if "tasks" in statement:
        assert not loaded & {"cerberus", "requests", "psutil"}
