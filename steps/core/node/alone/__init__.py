"""A step run alone: what the command lines of all steps share.

Enters: a plan and a node, as the command line names them. Leaves: the exit code, messages that
say what to do, and what the step did, added to the node's record. Touches: what the step touches;
it ends what it started itself, and nothing else.

Nothing here meets the other nodes: a step knows them by their health, and by what their steps
wrote where they share its run directory.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import ipaddress
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from steps.core import door
from steps.core.errors import Exit, InfraError, UsageError
from steps.core.node.alone import holding
from steps.core.node.alone.go import Go, Part, Step, StepRun, printer
from steps.core.node.alone.holding import Taken
from steps.core.node.wishes import Wishes, add_plan_arguments, index_in, plan_of, seconds, wishes_of
from steps.core.plan.cluster import own_addresses
from steps.core.plan.plan import Plan, from_json, to_json
from steps.core.record.rundir import RunDir, point_latest, write_text

__all__ = ["Part", "StepRun", "foreign", "printer", "step"]


def step(
    name: str, doc: str | None, parts: Callable[[StepRun], Iterable[Part]], **more: Any
) -> door.Verb:
    """The ``main`` of a step run alone; for arguments, see :class:`Step`."""
    made = Step(name, doc, parts, **more)

    def options(parser: argparse.ArgumentParser) -> None:
        add_plan_arguments(parser)
        if made.holds:
            held = parser.add_argument_group("how long")
            held.add_argument(
                "--detach", action="store_true", help="a keeper holds it until invoke stop"
            )
            held.add_argument(
                "--limit", type=partial(seconds, least=1, most=30 * 86400), metavar="SECONDS",
                help="end by itself after that; default: the sum of the plan's budgets",
            )  # fmt: skip

    return door.Verb(name, doc, options, partial(_work, made))


# The command line


def _work(step: Step, arguments: argparse.Namespace) -> int:
    asked = wishes_of(arguments)
    plan, run_dir = find(asked)
    door.keep_in(run_dir.path)
    nodes, whole = _nodes(step, plan, asked.node_index)
    if step.holds:
        nodes = [index for index in nodes if step.names(plan, index)]
        if not nodes:
            print(f"nothing to do: the plan has no {step.name} there")
            return int(Exit.PASS)
    for index in nodes:
        wrong = foreign(plan.nodes[index].address) if step.holds or step.starts else ""
        if wrong:
            hint = "Do it on that host, or make a plan for this one: invoke plan --hosts."
            raise InfraError(wrong, hint)
        holding.check(run_dir.node(index), plan.fingerprint())
    for hold in holding.settle(run_dir):
        print(f"warning: {hold} had died", file=sys.stderr)
    limit = asked.limit or sum(budget.seconds for budget in plan.budgets.values())
    one = partial(_one, step, plan, run_dir, asked.verbose, limit, whole)
    if asked.detach:
        return _detached(step, run_dir, nodes, one, limit)
    if step.holds and len(nodes) > 1:
        return _together(nodes, one)
    return max(one(index) for index in nodes)


def find(asked: Wishes) -> tuple[Plan, RunDir]:
    """The plan and the run directory a command line means; makes the directory of a new plan.

    Raises:
        UsageError, CaseError, InfraError: it means none that this step may use.
    """
    plan, path = plan_of(asked)
    given = Path(asked.plan) if asked.plan else None
    if given and not asked.run_dir and given.name != "plan.json":
        path = Path("runs") / plan.run
    run_dir = RunDir(path).make()
    if path.stat().st_uid != os.getuid():
        raise UsageError(
            f"the run directory {path} belongs to another user",
            "Copy its plan.json, and name it with --plan and a directory of yours with --run-dir.",
        )
    _enter(run_dir)
    if not run_dir.plan.exists():
        write_text(run_dir.plan, to_json(plan))
        point_latest(run_dir.path)
    elif asked.case:
        run_dir.check_unused()
    elif from_json(run_dir.plan.read_text(encoding="utf-8")).fingerprint() != plan.fingerprint():
        raise UsageError(
            f"{given} is not the plan of {path}: its fingerprint is {plan.fingerprint()[:12]}",
            "Name a new directory with --run-dir.",
        )
    return plan, run_dir


def _enter(run_dir: RunDir) -> None:
    """Be one of the steps in this directory, which a whole run has for itself alone."""
    handle = os.open(run_dir.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"a whole run is going on in {run_dir.path}",
            "Wait for its end, or begin one of your own: invoke plan --case CASE.",
        ) from None
    except OSError:  # a network file system without locks
        pass
    finally:
        os.close(handle)


def _nodes(step: Step, plan: Plan, given: int | None) -> tuple[list[int], bool]:
    """The nodes a step is done for, and whether these are the whole fleet."""
    if given is not None or len(plan.nodes) == 1 or not step.everywhere:
        return [index_in(plan, given)], given is None and len(plan.nodes) == 1
    if plan.cluster.backend == "local":
        return list(range(len(plan.nodes))), True
    own = {address for found in own_addresses().values() for address in found}
    here = [node.index for node in plan.nodes if node.address in own]
    if len(here) != 1:
        listed = ", ".join(node.address for node in plan.nodes)
        raise UsageError(
            f"the plan is for {listed}; this machine has {', '.join(sorted(own))}",
            "Say which node this is with --node-index, or make a plan for these addresses.",
        )
    return here, False


def foreign(address: str) -> str:
    """Why a node of this address cannot be this machine; empty when it can."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        return ""
    own = [entry for entries in own_addresses().values() for entry in entries]
    if wanted.is_loopback or str(wanted) in own:
        return ""
    return f"the plan gives this node the address {wanted}, but it has {', '.join(own)}"


def _detached(
    step: Step, run_dir: RunDir, nodes: list[int], one: Callable[..., int], limit: float
) -> int:
    keepers = []
    for index in nodes:
        log = run_dir.node(index).make().path / f"keeper-{step.name}.log"
        before = log.stat().st_size if log.exists() else 0
        work = partial(_kept, one, index)
        keepers.append((index, log, before, *holding.detach(step.name, log, work)))
    worst = 0
    for index, log, before, pid, heard in keepers:
        code = holding.await_up(pid, heard)
        worst = max(worst, code)
        if code:
            with log.open(errors="replace") as told:
                told.seek(before)
                print(told.read().strip(), file=sys.stderr)
            continue
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + limit))
        print(f"{step.name} of node {index} is held by pid {pid}, at most until {until}")
    if not worst:
        print("invoke status shows it, invoke stop ends it.")
    return worst


def _kept(one: Callable[..., int], index: int, up: Callable[[], None]) -> int:
    return one(index, up=up)


def _together(nodes: list[int], one: Callable[..., int]) -> int:
    """Hold several nodes from one terminal; when one ends, so do the others."""
    children = {}
    for index in nodes:
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            code = 3
            try:
                code = door.guarded(partial(one, index))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children[pid] = index

    def pass_on(number: int, _frame: object) -> None:
        for pid in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGHUP else number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal tells them too
    worst = 0
    while children:
        pid, status = os.wait()
        if children.pop(pid, None) is not None:
            worst = max(worst, abs(os.waitstatus_to_exitcode(status)))
            pass_on(signal.SIGTERM, None)
    return worst


# One node


def _one(
    step: Step,
    plan: Plan,
    run_dir: RunDir,
    verbose: bool,
    limit: float,
    whole: bool,
    index: int,
    up: Callable[[], None] | None = None,
) -> int:
    until = time.time() + limit
    taken = Taken(run_dir, index, step.name, until, step.names(plan, index))
    try:
        return Go(step, plan, run_dir, index, whole, taken).carry_out(verbose, up)
    finally:
        taken.close()
