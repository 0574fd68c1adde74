"""One invoke task a step; each passes its options on to the step's own command line.

Enters: options. Leaves: the step's exit code. Touches: what the step touches.
Steps are imported when they are called, so that ``invoke --list`` is quick.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from invoke import Context, Program, Task, task
from invoke.exceptions import Exit as Leave
from invoke.exceptions import ParseError

from steps.core import door
from steps.core.errors import Exit

_LISTS = ["fault", "timeout"]


def call(module: str, options: dict[str, Any], *words: str) -> None:
    """Run a module's ``main`` with words and options as its command line."""
    argv: list[str] = [*words]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            argv.append(flag)
        elif isinstance(value, list):
            argv += [part for item in value for part in (flag, item)]
        elif value not in (None, False, ""):
            argv += [flag, str(value)]
    try:
        code = door.guarded(lambda: importlib.import_module(module).main(argv))
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 2
    if code:
        raise Leave(code=code)


def refuse_well() -> None:
    """Let what invoke itself refuses, such as an unknown task, end with exit code 2, not 1."""
    parse = Program.parse_tasks

    def parse_tasks(self: Program) -> None:
        try:
            parse(self)
        except ParseError as error:
            print(f"error: {error}\n    invoke --list shows the tasks.", file=sys.stderr)
            raise Leave(code=int(Exit.USAGE)) from None

    Program.parse_tasks = parse_tasks  # type: ignore[method-assign]


_SHAPE = {
    "rehearse": "stand-ins play the engines, on this machine",
    "fault": "inject a fault in a rehearsal (may be repeated)",
    "bench": "benchmark driver, such as smoke; `python -m steps.bench --help` lists them",
    "timeout": "PHASE=SECONDS, a phase's budget (may be repeated)",
}
_PLAN = {
    "plan": "a plan.json; default: runs/latest/plan.json",
    "case": "a case: a path, or a name in configs/",
    "node_index": "which node this is; default 0, the leader",
    "run_dir": "default: the plan's directory, or runs/<run id>",
    "verbose": "show what the processes print",
    **_SHAPE,
}


@task(help={"files": "cases; default: all of configs/", "format": "text, json, github, sarif"})
def validate(c: Context, files: str = "", format: str = "text", explain: str = "") -> None:
    """Find every mistake in cases: schema, plan and the rules of fleets."""
    call("steps.validate", {"format": format, "explain": explain}, *files.split())


@task(help={"files": "cases; default: all of configs/", "dry_run": "only show the diff"})
def fix(c: Context, files: str = "", dry_run: bool = False) -> None:
    """Repair what can be repaired safely in cases; shows the diff."""
    call("steps.fix", {"dry_run": dry_run}, *files.split())


@task(
    help={"hosts": "addresses, comma separated", "format": "text or json", **_SHAPE},
    iterable=_LISTS,
)
def plan(
    c: Context,
    case: str,
    hosts: str = "",
    format: str = "text",
    output: str = "",
    rehearse: bool = False,
    fault: list[str] | None = None,
    bench: str = "",
    timeout: list[str] | None = None,
) -> None:
    """Print the plan of a case: processes, ports, benchmarks; nothing is started."""
    call("steps.resolve", {key: value for key, value in locals().items() if key != "c"})


def _step(name: str, doc: str) -> Task[Any]:
    """The task of a step that takes a plan, a node and a run directory."""

    def body(
        c: Context,
        plan: str = "",
        case: str = "",
        node_index: int | None = None,
        run_dir: str = "",
        rehearse: bool = False,
        fault: list[str] | None = None,
        bench: str = "",
        timeout: list[str] | None = None,
        verbose: bool = False,
    ) -> None:
        call(f"steps.{name}", {key: value for key, value in locals().items() if key in _PLAN})

    body.__name__, body.__doc__ = name, doc
    decorate: Callable[..., Task[Any]] = task(help=_PLAN, iterable=_LISTS)
    return decorate(body)


node = _step("node", "Run one node's whole share of a run.")
preflight = _step("preflight", "Look at ports, devices, programs and disks; starts nothing.")
serve = _step("serve", "Start one node's servers and hold them until Ctrl-C.")
proxy = _step("proxy", "Start the proxy of a split fleet and hold it until Ctrl-C.")
wait = _step("wait", "Wait until the fleet is ready, proven by a completion.")
bench = _step("bench", "Run the benchmarks against a fleet that is up.")
prove = _step("prove", "Check that every side and rank served requests.")
collect = _step("collect", "Collect logs into the run directory, without secrets.")


@task(help={"run_dir": "default: runs/latest", "format": "text or json"})
def report(c: Context, run_dir: str = "runs/latest", format: str = "text") -> None:
    """Compute and print the verdict of a run directory."""
    call("steps.report", {"run_dir": run_dir, "format": format})
