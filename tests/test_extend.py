"""docs/extend.md tells the truth: what it shows is added to a copy of the checkout, and runs.

And what is registered can be chosen, while nobody else asks for it by its name.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tasks
from ci import doctor
from ci import run as ci_run
from ci.backends import BACKENDS, backend
from ci.tools.environments import RECIPES
from steps import bench, bench_drivers
from steps.core.case import fields
from steps.core.errors import UsageError
from steps.core.plan import budgets
from steps.core.plan.cluster import Cluster
from steps.core.plan.drivers import DRIVERS, chosen
from steps.core.plan.proxies import KINDS, choose
from steps.lint import rules
from steps.lint.registry import RULES
from tests.core.cases import ROOT, SPLIT, case_of, cluster_of
from tests.realpath import fleet

PAGE = ROOT / "docs" / "extend.md"
FOLDERS = ("ci", "configs", "docs", "k8s", "rehearsal", "steps", "tests")
FILES = (
    "pyproject.toml",
    "setup.cfg",
    "noxfile.py",
    "tasks.py",
    *(p.name for p in ROOT.glob("*.md")),
)
STEP = re.compile(
    r"^(?:New file|In) `(?P<file>[^`]+)`:$|^```(?P<kind>python|diff)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def options(main: Any, name: str) -> set[str]:
    """The choices of an option."""
    actions = main.parser()._actions
    [choices] = [set(a.choices) for a in actions if name in a.option_strings]
    return choices


# What is registered


def test_every_driver_can_be_chosen_and_measures() -> None:
    assert options(ci_run.main, "--bench") == options(bench.main, "--bench") == set(DRIVERS)
    for name, driver in DRIVERS.items():
        assert name == driver.name
        if driver.module:
            module = bench_drivers.implementation(driver)
            assert callable(module.measure) and callable(module.problems)
        else:
            assert driver.ungated
    with pytest.raises(UsageError, match="expected one of smoke"):
        chosen("smok", False)


def test_a_driver_that_cannot_rehearse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    proud = dataclasses.replace(DRIVERS["smoke"], name="proud", rehearses=False)
    monkeypatch.setitem(DRIVERS, "proud", proud)
    assert chosen("proud", False) is proud
    with pytest.raises(UsageError, match="proud cannot measure stand-ins"):
        chosen("proud", True)


def test_every_proxy_can_be_chosen() -> None:
    assert set(KINDS) == {*fields.PROXIES, "command"}
    for name, kind in KINDS.items():
        text = {"command": "run $PORT"} if name == "command" else {"kind": name}
        spec = case_of(f"{SPLIT}proxy: {json.dumps(text)}\n").proxy
        assert choose(spec.kind, "", cluster_of(2))[0] is kind


def test_every_tool_can_be_built_and_has_its_field() -> None:
    named = {field.name for field in dataclasses.fields(Cluster)}
    for tool in {x.tool for x in (*DRIVERS.values(), *KINDS.values()) if x.tool}:
        assert tool.environment in RECIPES
        assert tool.field in named


def test_every_backend_can_be_chosen() -> None:
    assert options(ci_run.main, "--on") == set(BACKENDS)
    assert options(doctor.main, "--for") == {"rehearsal", *BACKENDS}
    assert all(callable(backend(name)) for name in BACKENDS)


def test_every_module_of_rules_is_read() -> None:
    read = {entry.check.__module__ for entry in RULES.values() if entry.check}
    there = {f"{rules.__name__}.{p.stem}" for p in (ROOT / "steps/lint/rules").glob("[a-z]*.py")}
    assert there == read


def test_every_phase_has_its_budgets() -> None:
    assert set(fields.PHASES) == set(budgets.BUDGETS) == set(budgets.REHEARSAL_BUDGETS)


def test_every_verb_is_a_task_of_invoke() -> None:
    """Not ``install``: what it changes stays on the machine."""
    verbs = {
        path.stem.replace("_", "-")
        for path in (ROOT / "steps").glob("*.py")
        if re.search(r"^main = ", path.read_text(), re.MULTILINE)
    }
    assert {"node", "wait"} < verbs
    assert verbs - {"resolve"} <= set(tasks.namespace.task_names), "resolve is the task plan"


def comparisons() -> Iterator[tuple[str, set[object], str]]:
    """What code compares, the constants in it, and where."""
    for folder in ("steps", "ci", "k8s"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    found = {p.value for p in ast.walk(node) if isinstance(p, ast.Constant)}
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield ast.unparse(node), found, where


def test_nobody_asks_for_a_driver_or_a_proxy_by_name() -> None:
    """``none`` and ``command`` are words of other things as well."""
    names = {*DRIVERS, *KINDS, "ais_bench"}
    found = list(comparisons())
    assert len(found) > 200
    asked = [
        f"{where}: {text}"
        for text, constants, where in found
        if constants & (names if "driver" in text else names - {"none", "command"})
    ]
    assert asked == []


# The page


def changes() -> Iterator[tuple[str, str, str]]:
    """(file, kind, text) of every block of the page."""
    file = ""
    for match in STEP.finditer(PAGE.read_text(encoding="utf-8")):
        file = match["file"] or file
        if match["kind"]:
            yield file, match["kind"], match["text"]


def apply(root: Path) -> set[str]:
    """Do what the page shows; the files that were touched."""
    touched = set()
    for file, kind, text in changes():
        touched.add(file)
        path = root / file
        if kind == "python":
            assert not path.exists(), f"{file} is there already"
            path.write_text(text, encoding="utf-8")
            continue
        lines = text.splitlines(keepends=True)
        old, new = ("".join(x[1:] for x in lines if x[0] in keep) for keep in (" -", " +"))
        before = path.read_text(encoding="utf-8")
        assert before.count(old) == 1, f"{file} does not have this once:\n{old}"
        path.write_text(before.replace(old, new), encoding="utf-8")
    return touched


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with everything added that the page shows, and renewed as it says."""
    root = tmp_path_factory.mktemp("extend") / "checkout"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "runs", "recordings", ".*")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    touched = apply(root)
    modules = [str(root / name) for name in touched if name.endswith(".py")]
    assert python(root, "-m", "ruff", "check", *modules).returncode == 0, python(
        root, "-m", "ruff", "check", *modules
    ).stdout
    renewed = re.findall(r"^\| .* \| `python -m ([\w.]+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert len(renewed) == 4
    for module in renewed:
        done = python(root, "-m", module)
        assert done.returncode == 0, done.stdout
    return root


def python(root: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in the copy, which is all it sees of ours."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(root), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )


PROXY = f"""\
#!{sys.executable}
# even-proxy: the tests' proxy with other options.
import os, sys
words = sys.argv[1:]
host, port = words[1].rsplit(":", 1)
argv = [sys.executable, "{fleet.PROXY}", "--host", host, "--port", port]
for side in ("prefiller", "decoder"):
    urls = [v for k, v in zip(words, words[1:]) if k == f"--{{side}}"]
    hosts, ports = zip(*(url.split("//")[1].rsplit(":", 1) for url in urls))
    argv += [f"--{{side}}-hosts", *hosts, f"--{{side}}-ports", *ports]
os.execv(argv[0], argv)
"""


def test_what_the_page_adds_runs_together(copy: Path, tmp_path: Path) -> None:
    """A split fleet of the tests' engine: the new backend, proxy, driver, check, step and field."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "even-proxy").write_text(PROXY)
    (programs / "even-proxy").chmod(0o755)
    env = fleet.environment(tmp_path)
    env |= {"PATH": f"{programs}:{env['PATH']}", "PYTHONPATH": f"{copy}:{env['PYTHONPATH']}"}
    asked = {"warm": True, "test_content": ["same_answer"]}
    case = fleet.written(tmp_path, fleet.split(2, proxy={"kind": "even-proxy"}, **asked))
    words = [str(case), "--on", "bare", "--bench", "single", "--run-dir", str(tmp_path / "run")]
    done = python(copy, "-m", "ci.run", *words, **env)
    assert done.returncode == 0, done.stdout
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert (verdict["verdict"], verdict["rehearsed"]) == ("pass", False)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    [proxy] = [p for p in plan["nodes"][0]["processes"] if p["kind"] == "proxy"]
    assert (proxy["argv"][0], plan["warm"]) == ("even-proxy", True)
    record = json.loads((tmp_path / "run" / "node-0" / "record.json").read_text())
    assert {"checks", "warm"} <= {phase["name"] for phase in record["phases"]}
    made = {check["name"]: check["status"] for check in record["checks"]}
    assert made["content same_answer"] == "pass"
    [result] = record["benchmarks"]
    assert (result["driver"], result["requests"]["ok"]) == ("single", 6)
    assert result["metrics"]["request_throughput"] > 0
    assert (tmp_path / "run" / "node-1" / "record.json").exists()
    assert "phase warm" in (tmp_path / "run" / "junit.xml").read_text()


def test_a_rehearsal_of_the_copy_knows_the_step_and_refuses_the_driver(
    copy: Path, tmp_path: Path
) -> None:
    quick = ["configs/quickstart.yaml", "--rehearse", "--load-seconds", "0.2", "--run-dir"]
    done = python(copy, "-m", "ci.run", *quick, str(tmp_path / "a"), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert '"warm"' in (tmp_path / "a" / "node-0" / "record.json").read_text()
    more = [str(tmp_path / "b"), "--bench", "vllm-bench"]
    done = python(copy, "-m", "ci.run", *quick, *more, TMPDIR=str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert "vllm-bench cannot measure stand-ins" in done.stdout


def test_the_rule_and_the_field_of_the_page_are_checked(copy: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(SPLIT)
    data["benchmarks"]["perf"]["max_out_len"] = 1
    path = fleet.written(tmp_path, {**data, "warm": "soon"})
    done = python(copy, "-m", "steps.validate", str(path))
    assert done.returncode == 2, done.stdout
    assert "MN006" in done.stdout and "warm" in done.stdout
    fleet.written(tmp_path, {**data, "warm": False})
    done = python(copy, "-m", "steps.validate", str(path))
    assert "MN790" in done.stdout and "no TPOT can be measured" in done.stdout
    done = python(copy, "-m", "steps.validate", "--explain", "MN790")
    assert "Answers of one token" in done.stdout


def test_the_copy_keeps_the_rules_of_the_house(copy: Path) -> None:
    """Its floors, its own examples, its pages; and the registries above hold there too."""
    words = "MN790 or fresh or downwards or chosen or task or phase or read or golden or verbs"
    # steps/ is full with 14 modules: whoever adds one for good finds room, as the page says.
    words = f"({words}) and not larger_than_one_can_read"
    files = (
        "core/test_house.py",
        "core/test_plans.py",
        "lint",
        "ci/test_docs.py",
        Path(__file__).name,
    )
    done = python(
        *(copy, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"),
        *("-k", words, *(f"tests/{name}" for name in files)),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 100, done.stdout[-300:]
