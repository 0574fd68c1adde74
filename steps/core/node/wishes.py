"""What is asked for on a command line: a case or a plan, how to rehearse it, which node.

Enters: arguments. Leaves: plans, options, a rehearsal, or what is wrong with them.
Touches: reads the case or the plan.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path

from steps.core import settings
from steps.core.case.build import load_case
from steps.core.errors import InfraError, UsageError
from steps.core.plan import clusters, faults
from steps.core.plan.budgets import parse_timeouts
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.plan import Plan, from_json
from steps.core.plan.resolver import Options, resolve
from steps.core.record.rundir import new_run_id

CONFIGS = clusters.ROOT / "configs"


def find_case(name: str) -> Path:
    """A case by path, or by its name in ``configs/``; ``CONFIG_BASE_PATH`` is honoured.

    Raises:
        UsageError: there is none; lists close names.
    """
    import difflib

    base = settings.read().config_base_path
    there = []
    for path in (Path(name), *([Path(base) / name] if base else []), CONFIGS / name):
        with contextlib.suppress(OSError):  # a name may be too long for a file
            if path.is_file():
                return path
            if path.exists():
                there.append(path)
    if there:
        kind = "a directory" if there[0].is_dir() else "no regular file"
        raise UsageError(f"{there[0]} is {kind}, expected a case file", "Name a YAML file.")
    known = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    known = [path for path in known if not path.startswith("clusters/")]
    close = difflib.get_close_matches(name, known, 3, 0.4)
    here = f"configs/ has: {', '.join(known)}." if known else "Name the path of a YAML file."
    raise UsageError(
        f"no case {name!r}, neither as a path nor in configs/",
        f"Did you mean {' or '.join(close)}?" if close else here,
    )


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """``--plan``/``--case``, ``--node-index``, ``--run-dir`` and what shapes a plan."""
    where = parser.add_argument_group("what to run")
    where.add_argument("--plan", help="a plan.json; default: runs/latest/plan.json")
    where.add_argument("--case", help="a case: a path, or a name in configs/")
    where.add_argument("--node-index", type=int, help="which node this is; default 0 (the leader)")
    where.add_argument("--run-dir", help="default: the plan's directory, or runs/<run id>")
    where.add_argument("--verbose", action="store_true", help="show what the processes print")
    add_shape_arguments(parser)


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """What shapes a plan made from a case."""
    shape = parser.add_argument_group("with --case")
    shape.add_argument(
        "--rehearse", action="store_true", help="stand-ins play the engines, on this machine"
    )
    shape.add_argument("--fault", action="append", default=[], help="inject a fault in a rehearsal")
    shape.add_argument(
        "--load-seconds", type=_load_seconds, default=1.0, help="of a stand-in; default 1"
    )
    shape.add_argument("--bench", choices=("smoke", "aisbench", "none"), help="benchmark driver")
    shape.add_argument(
        "--timeout", action="append", default=[], metavar="PHASE=SECONDS", help="a phase's budget"
    )
    shape.add_argument(
        "--network", type=_network, default="", help="loopback network, such as 71.9"
    )


def _network(text: str) -> str:
    """Two numbers of a loopback network."""
    parts = text.split(".")
    if text and not (len(parts) == 2 and all(re.fullmatch("[0-9]{1,3}", p) for p in parts)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected two numbers such as 71.9")
    if any(int(part) > 255 for part in parts if part):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers from 0 to 255")
    return text


def _load_seconds(text: str) -> float:
    """A number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds from 0 to 86400")
    return seconds


def options_of(arguments: argparse.Namespace, run: str) -> Options:
    """Options of ``resolve`` from a command line.

    Raises:
        UsageError: a ``--timeout`` is wrong.
    """
    try:
        return Options(run, arguments.bench or "", parse_timeouts(arguments.timeout))
    except ValueError as error:
        raise UsageError(str(error)) from None


def rehearsal_of(arguments: argparse.Namespace) -> Rehearsal | None:
    """How to rehearse, or None."""
    if not arguments.rehearse:
        if arguments.fault:
            raise UsageError("--fault works in a rehearsal only", "Add --rehearse.")
        return None
    try:
        faults.sort(arguments.fault)
    except ValueError as error:
        raise UsageError(str(error), "docs/rehearsal.md has the language of faults.") from None
    return Rehearsal(arguments.load_seconds, tuple(arguments.fault))


def plan_of(arguments: argparse.Namespace) -> tuple[Plan, Path]:
    """The plan a command line means, and its run directory.

    Raises:
        UsageError, CaseError, InfraError: it means none.
    """
    if arguments.case:
        case = load_case(find_case(arguments.case))
        run = new_run_id()
        cluster = clusters.local(case, rehearsal=rehearsal_of(arguments), network=arguments.network)
        plan = resolve(case, cluster, options_of(arguments, run))
        return plan, Path(arguments.run_dir or Path("runs") / run)
    rehearsal_of(arguments)
    path = Path(arguments.plan or Path(arguments.run_dir or "runs/latest") / "plan.json")
    if not path.is_file():
        raise UsageError(
            f"no plan: {path} is not there",
            "Give --case CASE [--rehearse], --plan FILE, or --run-dir of an earlier run.",
        )
    try:
        plan = from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InfraError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        hint = "Make one anew: python -m steps.resolve --case CASE --output FILE."
        raise UsageError(f"{path}: {error}", hint) from None
    return plan, Path(arguments.run_dir or path.parent)


def index_in(plan: Plan, given: int | None) -> int:
    """The node index of a command line, the leader's by default.

    Raises:
        UsageError: the plan has no such node.
    """
    index = given or 0
    if not 0 <= index < len(plan.nodes):
        raise UsageError(
            f"--node-index: found {index}, expected 0 to {len(plan.nodes) - 1}",
            "Nodes count from 0; node 0 is the leader.",
        )
    return index
