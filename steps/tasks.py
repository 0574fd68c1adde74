"""One invoke task a step; each passes its options on to the step's own command line.

Enters: options. Leaves: the step's exit code. Touches: what the step touches.
Steps are imported when they are called, so that ``invoke --list`` is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invoke import Context, Program, Task, task
from invoke.exceptions import Exit as Leave
from invoke.exceptions import ParseError

from steps.core import door
from steps.core.errors import Exit

_LISTS = ["fault", "timeout", "product"]


#: Steps that still happen in a row after one has failed.
CLOSING = ("collect", "stop", "report")


class _Row:
    """The tasks of one command line, of which those after a failure are left out."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.several = False
        self.run_dir = ""
        self.failed = 0

    def begin(self, names: list[str]) -> None:
        """This is what the command line asks for."""
        self.names, self.several = names, len(names) > 1

    def insert(self, names: list[str]) -> None:
        """The task that comes now is made of these."""
        self.names = [*names, *self.names[1:]]
        self.several = True

    def pin(self, name: str, options: dict[str, Any]) -> None:
        """Let all tasks use one run directory, whatever becomes ``runs/latest`` meanwhile."""
        from steps.core.record.rundir import new_run_id

        named = [options.get(key) for key in ("run_dir", "plan", "case")]
        if name == "plan" and not options.get("run_dir"):
            options["run_id"] = new_run_id()
            options["run_dir"] = f"runs/{options['run_id']}"
        elif "run_dir" in options and not any(named):
            latest = Path("runs/latest")
            self.run_dir = self.run_dir or str(latest.resolve() if latest.exists() else latest)
            options["run_dir"] = self.run_dir
        self.run_dir = options.get("run_dir") or self.run_dir


_row = _Row()


def call(module: str, options: dict[str, Any], *words: str) -> None:
    """Run a module's ``main`` with words and options as its command line.

    In a row of several tasks each one is a process of its own, all use the run directory of the
    first, and a failed one ends the row but for its closing steps. The row ends with the exit
    code of the verdict, where it has one, else of the first task that failed.
    """
    name = _row.names.pop(0) if _row.names else ""
    if not _row.several:
        code = _guarded(module, options, words)
        if code:
            raise Leave(code=code)
        return
    if _row.failed and name not in CLOSING:
        print(f"{name}: left out, since a step before it failed", flush=True)
    else:
        _row.pin(name, options)
        with contextlib.suppress(Exception):  # the step itself says what is wrong
            importlib.import_module(module)  # here, so that later steps need not
        code = _apart(lambda: _guarded(module, options, words))
        _row.failed = code if name == "report" and code else _row.failed or code
    if _row.failed and (name == "plan" or not set(_row.names) & set(CLOSING)):
        raise Leave(code=_row.failed)


def _guarded(module: str, options: dict[str, Any], words: tuple[str, ...]) -> int:
    """The exit code of a module's ``main``."""
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
        return door.guarded(lambda: int(importlib.import_module(module).main(argv)))
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 2


def _apart(work: Callable[[], int]) -> int:
    """Do it in a process of its own, so that no step finds threads or signals of another."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = int(Exit.INFRA)
        try:
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    held = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        held[number] = signal.signal(number, lambda got, _frame: os.kill(pid, got))
    held[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)  # it hears it itself
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for number, before in held.items():
            signal.signal(number, before)
    return code if code >= 0 else int(Exit.INFRA)


def refuse_well() -> None:
    """Let what invoke itself refuses end with exit code 2, not 1; learn the tasks of the row."""
    parse = Program.parse_tasks

    def parse_tasks(self: Program) -> None:
        try:
            parse(self)
        except ParseError as error:
            print(f"error: {error}\n    invoke --list shows the tasks.", file=sys.stderr)
            raise Leave(code=int(Exit.USAGE)) from None
        self.config.tasks["dedupe"] = False  # two measurements are two
        _row.begin([str(context.name) for context in self.tasks])

    Program.parse_tasks = parse_tasks  # type: ignore[method-assign]


_ONLY = {"only": "NAME of a case, in a file of several"}
_SHAPE = {
    **_ONLY,
    "rehearse": "stand-ins play the engines, on this machine",
    "fault": "inject a fault in a rehearsal (may be repeated)",
    "bench": "benchmark driver, such as smoke; `python -m steps.bench --help` lists them",
    "timeout": "PHASE=SECONDS, a phase's budget (may be repeated)",
    "product": "NAME=REF, test this state of a product (may be repeated); docs/products.md",
    "profile": "a cluster profile, for its products",
}
_PLAN = {
    "plan": "a plan.json; default: runs/latest/plan.json",
    "case": "a case: a path, or a name in configs/",
    "node_index": "which node this is; default 0, the leader",
    "run_dir": "default: the plan's directory, or runs/<run id>",
    "verbose": "show what the processes print",
    **_SHAPE,
}


@task(
    help={
        "files": "cases; default: all of configs/",
        "format": "text, json, github, sarif",
        **_ONLY,
    }
)
def validate(
    c: Context, files: str = "", format: str = "text", explain: str = "", only: str = ""
) -> None:
    """Find every mistake in cases: schema, plan and the rules of fleets."""
    options = {"format": format, "explain": explain, "only": only}
    call("steps.validate", options, *files.split())


@task(help={"files": "cases; default: all of configs/", "dry_run": "only show the diff"})
def fix(c: Context, files: str = "", dry_run: bool = False) -> None:
    """Repair what can be repaired safely in cases; shows the diff."""
    call("steps.fix", {"dry_run": dry_run}, *files.split())


@task(
    help={
        "hosts": "addresses, comma separated",
        "format": "text or json",
        "output": "write a copy of the plan to this file, for other hosts",
        "run_dir": "default: runs/<run id>; runs/latest points at it",
        **_SHAPE,
    },
    iterable=_LISTS,
)
def plan(
    c: Context,
    case: str,
    hosts: str = "",
    format: str = "text",
    output: str = "",
    run_dir: str = "",
    only: str = "",
    rehearse: bool = False,
    fault: list[str] | None = None,
    bench: str = "",
    timeout: list[str] | None = None,
    product: list[str] | None = None,
    profile: str = "",
) -> None:
    """Make and print the plan of a case, in a run directory; nothing is started."""
    call("ci.plan", {key: value for key, value in locals().items() if key != "c"})


def _step(name: str, doc: str, module: str = "") -> Task[Any]:
    """The task of a step that takes a plan, a node and a run directory."""

    def body(
        c: Context,
        plan: str = "",
        case: str = "",
        only: str = "",
        node_index: int | None = None,
        run_dir: str = "",
        rehearse: bool = False,
        fault: list[str] | None = None,
        bench: str = "",
        timeout: list[str] | None = None,
        product: list[str] | None = None,
        profile: str = "",
        verbose: bool = False,
    ) -> None:
        options = {key: value for key, value in locals().items() if key in _PLAN}
        call(module or f"steps.{name}", options)

    body.__name__, body.__doc__ = name, doc
    decorate: Callable[..., Task[Any]] = task(help=_PLAN, iterable=_LISTS)
    return decorate(body)


def _hold(name: str, doc: str, module: str = "") -> Task[Any]:
    """The task of a step that holds processes."""

    def body(
        c: Context,
        plan: str = "",
        case: str = "",
        only: str = "",
        node_index: int | None = None,
        run_dir: str = "",
        rehearse: bool = False,
        fault: list[str] | None = None,
        bench: str = "",
        timeout: list[str] | None = None,
        product: list[str] | None = None,
        profile: str = "",
        verbose: bool = False,
        detach: bool = False,
        limit: str = "",
    ) -> None:
        known = {*_PLAN, *_HELD}
        options = {key: value for key, value in locals().items() if key in known}
        call(module or f"steps.{name}", options)

    body.__name__, body.__doc__ = name, doc
    decorate: Callable[..., Task[Any]] = task(help={**_PLAN, **_HELD}, iterable=_LISTS)
    return decorate(body)


_HELD = {
    "detach": "a keeper holds it until invoke stop, instead of this terminal",
    "limit": "seconds after which it ends by itself; default: the sum of the plan's budgets",
}

node = _step("node", "Run one node's whole share of a run.")
preflight = _step("preflight", "Look at ports, devices, programs and disks; starts nothing.")
install = _step("install", "Install products under test and special_dependencies on a node.")
serve = _hold("serve", "Start servers and hold them; without a node, the whole local fleet.")
proxy = _hold("proxy", "Start the proxy of a split fleet and hold it.")
pool = _hold("pool", "Start the KV pool of a fleet and hold it.", "steps.byhand.pool")
wait = _step("wait", "Wait until the fleet is ready, proven by a completion.")
check = _step("check", "Ask the fleet for one completion.", "steps.byhand.check")
checks = _step("checks", "Make the case's checks of content.", "steps.byhand.checks")
bench = _step("bench", "Run the benchmarks against a fleet that is up; again adds a measurement.")
prove = _step("prove", "Check that every side and rank served requests.")
collect = _step("collect", "Collect logs into the run directory, without secrets.")

_WHERE = {"run_dir": "default: runs/latest", "format": "text or json"}


@task(help=_WHERE)
def report(c: Context, run_dir: str = "", format: str = "text") -> None:
    """Compute and print the verdict of a run directory."""
    call("steps.report", {"run_dir": run_dir, "format": format})


@task(help=_WHERE)
def status(c: Context, run_dir: str = "", format: str = "text") -> None:
    """Say what runs of a run directory, since when, on which ports, and what died."""
    call("steps.byhand.status", {"run_dir": run_dir, "format": format})


@task(help={"run_dir": "default: runs/latest", "node_index": "one node; default: all here"})
def stop(c: Context, run_dir: str = "", node_index: int | None = None) -> None:
    """End what serve, proxy and pool hold."""
    call("steps.byhand.stop", {"run_dir": run_dir, "node_index": node_index})


# What the roles do, step by step. ``invoke node`` is the same with a rendezvous.

_ROLE = {"plan": _PLAN["plan"], "run_dir": _PLAN["run_dir"], "node_index": "which node this is"}


@task(help=_ROLE)
def lead(c: Context, plan: str = "", run_dir: str = "", node_index: int | None = None) -> None:
    """Do all the leader does, on one machine for every node: from preflight to report."""
    _row.insert(
        [
            "preflight",
            "install",
            "serve",
            "wait",
            "checks",
            "bench",
            "prove",
            "stop",
            "collect",
            "report",
        ]
    )
    place: dict[str, Any] = {"run_dir": run_dir}
    here = {**place, "node_index": node_index}
    where = {**here, "plan": plan}
    call("steps.preflight", {**where})
    call("steps.install", {**where})
    call("steps.serve", {**where, "detach": True})
    call("steps.wait", {**where})
    call("steps.byhand.checks", {**where})
    call("steps.bench", {**where})
    call("steps.prove", {**where})
    call("steps.byhand.stop", {**here})
    call("steps.collect", {**where})
    call("steps.report", {**place})


@task(help=_ROLE)
def work(c: Context, plan: str = "", run_dir: str = "", node_index: int | None = None) -> None:
    """Do all a worker does: preflight, install, and serve until Ctrl-C; then collect."""
    _row.insert(["preflight", "install", "serve", "collect"])
    where: dict[str, Any] = {"plan": plan, "run_dir": run_dir, "node_index": node_index}
    call("steps.preflight", {**where})
    call("steps.install", {**where})
    call("steps.serve", {**where})
    call("steps.collect", {**where})
