"""replay: the case of an earlier run once more, with the same plan inputs.

Enters: the directory of a run, whole or fetched from elsewhere. Leaves: a new
run directory, what differs between the two plans, and the new run's exit
code. Touches: what ``ci.run`` touches; the earlier run only to read it.

    python -m ci.replay runs/latest
    python -m ci.replay runs/20261123-181500-3fa2c1 --run-dir again --verbose

Driver, timeouts, faults, seconds of load and the loopback network come from
the run's ``plan.json``, where it ran from its cluster, the case from its own
file while that is unchanged, else from the run's ``case.yaml``. What follows
the directory is passed on to ``ci.run`` and comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ci import run as ci_run
from ci.report import closing
from steps.core import VERSION, door, foreign
from steps.core.case.build import load_case
from steps.core.case.case import Case
from steps.core.case.numbers import dumps, loads
from steps.core.errors import CaseError, UsageError
from steps.core.plan import budgets, drivers, products
from steps.core.plan.plan import Plan, from_json, to_dict
from steps.core.plan.profile import load_profile, masked
from steps.core.record.rundir import RunDir, new_run_id, read_bounded, read_json
from steps.core.redaction import MASK

#: Differences of two plans that are shown.
SHOWN = 8


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="directory of an earlier run")
    parser.add_argument("--run-dir", help="of the new run; default: beside the earlier one")


def replay(earlier: Path, given: str | None, more: Sequence[str]) -> int:
    """Run it again; the new run's exit code.

    Raises:
        UsageError: the directory holds no run that can be repeated.
    """
    before = RunDir(earlier.resolve())
    plan = load(before)
    path = case_of(before, plan)
    directory = Path(given) if given else before.path.parent / new_run_id()
    profile = profile_of(before, plan)
    words = [str(path), *options(plan, path, profile), *tested(before, plan)]
    words += ["--run-dir", str(directory), *more]
    for text in warnings(plan, profile, str(before.profile(products.KEPT))):
        door.warn(text)
    print(foreign.line(f"replay of {before.path}: multinode {shlex.join(words)}"), flush=True)
    code = ci_run.main(words)
    closing.attempt("the comparison", lambda: _compare(before, RunDir(directory)), print)
    return code


def _compare(before: RunDir, after: RunDir) -> None:
    for line in compared(before, after):
        print(foreign.line(line))


def load(run_dir: RunDir) -> Plan:
    """The plan of an earlier run.

    Raises:
        UsageError: there is none, or none of this version.
    """
    if not run_dir.path.is_dir():
        raise UsageError(f"no run: {run_dir.path} is not there", "Name the directory of a run.")
    absent = [path.name for path in (run_dir.case, run_dir.plan) if not path.is_file()]
    if absent:
        hint = "A run whose case was refused has no plan; run the case itself."
        told = read_json(run_dir.verdict)
        if isinstance(told, dict) and isinstance(told.get("cases"), list):
            inside = ", ".join(str(entry.get("directory")) for entry in told["cases"])
            hint = f"It is a run of several cases: name the directory of one in it: {inside}."
        if run_dir.plan.is_file():
            hint = "Fetch the whole run directory; case.yaml and plan.json are in it."
        raise UsageError(f"{run_dir.path} has no {' and no '.join(absent)}", hint)
    try:
        return from_json(read_bounded(run_dir.plan).decode())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{run_dir.plan}: {error}", "Replay it with the version of the harness that made it."
        ) from None


def case_of(run_dir: RunDir, plan: Plan) -> Path:
    """The case's own file while it is what it was, since paths may count from it."""
    own = Path(plan.case_file)
    try:
        if own.is_file() and load_case(own, only=plan.only).sha256 == plan.case_sha256:
            return own
    except (CaseError, UsageError, OSError):
        pass
    return run_dir.case


def profile_of(run_dir: RunDir, plan: Plan) -> str:
    """The cluster's own profile while it is what it was, else the run's copy."""
    copy = run_dir.profile(plan.cluster.name)
    if plan.cluster.backend != "k8s" or not copy.is_file():
        return plan.cluster.name
    text = copy.read_text(encoding="utf-8")
    own = Path(text.partition("\n")[0].removeprefix("# "))
    with contextlib.suppress(CaseError, OSError, ValueError):
        if masked(own) == text:
            return str(own)
    return str(copy)


def options(plan: Plan, path: Path, profile: str = "") -> Iterator[str]:
    """The command line that makes ``plan`` of the case at ``path``."""
    case = load_case(path, only=plan.only)
    if plan.only:
        yield from ("--only", plan.only)
    cluster = plan.cluster
    rehearsal = cluster.rehearsal
    if cluster.backend != "local" or rehearsal is None:
        yield from ("--on", cluster.backend)
    if cluster.backend == "hosts":
        yield from ("--hosts", ",".join(node.address for node in cluster.nodes))
    if cluster.backend == "k8s" and (profile or cluster.name):
        yield from ("--profile", profile or cluster.name)
    if rehearsal is not None:
        yield from ("--rehearse", "--load-seconds", f"{rehearsal.load_seconds:g}")
        for fault in rehearsal.faults:
            yield from ("--fault", fault)
    for driver in {entry.driver for entry in plan.benchmarks}:
        yield from ("--bench", driver)
    if case.benchmarks and not plan.benchmarks:
        yield from ("--bench", drivers.OFF.name)
    for phase, seconds in _timeouts(plan, case).items():
        yield from ("--timeout", f"{phase}={seconds:g}")
    network = _network(plan)
    if network:
        yield from ("--network", network)


def tested(run_dir: RunDir, plan: Plan) -> Iterator[str]:
    """The options that bring the products of the run, at the commits that it had."""
    kept = run_dir.profile(products.KEPT)
    if not plan.cluster.products or not kept.is_file():
        return
    if plan.cluster.backend != "k8s":
        yield from ("--profile", str(kept))
        return
    for name, entry in load_profile(kept).products.items():
        yield from ("--product", f"{name}={entry['ref']}")
    if plan.cluster.image:
        yield from ("--image", plan.cluster.image)


def _timeouts(plan: Plan, case: Case) -> dict[str, float]:
    """The budgets that neither the defaults nor cluster and case explain."""
    usual = budgets.of(case, plan.cluster, {})
    return {
        phase: budget.seconds
        for phase, budget in plan.budgets.items()
        if phase not in usual or budget.seconds != usual[phase].seconds
    }


def _network(plan: Plan) -> str:
    """The earlier run's loopback network, unless somebody is using it."""
    first = plan.cluster.nodes[0].address.split(".")
    if plan.cluster.backend != "local" or first[0] != "127":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A connection that is only fading away is nobody.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((".".join(first), plan.cluster.control_port))
        except OSError:
            return ""
    return ".".join(first[1:3])


def warnings(plan: Plan, *profiles: str) -> Iterator[str]:
    """What may make the new run another one."""
    for profile in profiles:
        if Path(profile).is_file() and MASK in Path(profile).read_text(encoding="utf-8"):
            yield f"secrets are left out of {profile}: add --profile with the profile of the run"
    if plan.harness != VERSION:
        yield (
            f"the run was made by version {plan.harness or 'unknown'} of the harness, this is "
            f"{VERSION}: the plan may differ"
        )
    if plan.cluster.backend == "hosts":
        yield (
            "users, keys and directories of a hosts file are in no plan: add --hosts FILE if "
            "the run had one"
        )


def compared(before: RunDir, after: RunDir) -> Iterator[str]:
    """Whether plan and verdict came out as they were."""
    try:
        now = to_dict(load(after))
    except UsageError:
        return
    then = _moved(to_dict(load(before)), now)
    then["run"] = now["run"]
    if then["cluster"]["rehearsal"]:  # nox has an interpreter of its own for each session
        then["cluster"]["python"] = now["cluster"]["python"]
    unlike = list(differences(then, now))
    if unlike:
        yield f"The plan differs in {len(unlike)} place{'s' if len(unlike) != 1 else ''}:"
        yield from (f"  {line}" for line in unlike[:SHOWN])
    else:
        yield "The plan is the same, but for the run id."
    old, new = _told(before), _told(after)
    if not old:
        yield f"The earlier run has no verdict; now: {new}"
    elif old == new:
        yield f"The verdict is the same: {new}"
    else:
        yield f"The verdict was: {old}\n        now it is: {new}"


def _moved(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """An earlier plan at the new one's addresses, where a cluster gives each run others."""
    if then["cluster"]["backend"] != "k8s" or len(then["nodes"]) != len(now["nodes"]):
        return then
    moves = {a["address"]: b["address"] for a, b in zip(then["nodes"], now["nodes"], strict=True)}
    names = [plan["cluster"]["known"].get("LWS_LEADER_ADDRESS", "") for plan in (then, now)]
    moves.update({names[0]: names[1]} if all(names) else {})
    old = "|".join(map(re.escape, moves))
    text = re.sub(rf"(?<![\w.:-])({old})(?![\w.-])", lambda found: moves[found[1]], dumps(then))
    return dict(loads(text))


def _told(run_dir: RunDir) -> str:
    """Class, place and way of a verdict, without what differs between any two runs."""
    data = read_json(run_dir.verdict)
    if not isinstance(data, dict):
        return ""
    cause = data.get("cause")
    cause = cause if isinstance(cause, dict) else {}
    words = [str(data.get("verdict")), str(cause.get("kind") or "")]
    words += [f"node {cause['node']}"] if cause.get("node") is not None else []
    words += [str(cause.get(key) or "") for key in ("process", "phase", "signal")]
    if cause.get("exit_code") is not None:
        words.append(f"exit code {cause['exit_code']}")
    return ", ".join(word for word in words if word)


def differences(then: Any, now: Any, place: str = "plan") -> Iterator[str]:
    """Every leaf in which two JSON values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            yield from differences(then.get(key), now.get(key), f"{place}.{key}")
    elif isinstance(then, (list, tuple)) and isinstance(now, (list, tuple)):
        if len(then) != len(now):
            yield f"{place}: {len(then)} entries, now {len(now)}"
        for index, (old, new) in enumerate(zip(then, now, strict=False)):
            yield from differences(old, new, f"{place}[{index}]")
    elif then != now:
        yield f"{place}: {_short(then)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


main = door.Verb(
    "replay",
    __doc__,
    _options,
    lambda given: replay(Path(given.run), given.run_dir, given.more),
    more=True,
)

if __name__ == "__main__":
    raise SystemExit(main())
