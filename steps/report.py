"""report: the verdict of a run directory, for programs and for people.

Enters: a run directory with a plan and records. Leaves: ``verdict.json``,
``summary.md``, ``results-*.json`` in upstream's form, one ``events.jsonl`` of
all nodes. Touches: those files. JUnit and HTML are made on the runner (``ci``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from steps.core import cli, records, summary
from steps.core.errors import InfraError, UsageError
from steps.core.events import RUNNER, read_events
from steps.core.plan import Plan, from_json
from steps.core.records import Cause, Record
from steps.core.redaction import Redactor
from steps.core.rundir import RunDir, read_json, write_json, write_text
from steps.core.verdict import Verdict, compute

#: Phases of a backend in which pods hold their devices though nothing runs yet.
HOLDING = ("pull", "start")
Remark = Callable[[Plan, Verdict], Sequence[str]]


def run(run_dir: RunDir, observed: Sequence[Cause] = (), remark: Remark | None = None) -> Verdict:
    """Compute and write the verdict of a run directory.

    Args:
        observed: causes that only the backend saw; kept in the directory, so that who reads
            the run again comes to the same verdict.
        remark: what the runner has to say about a verdict, as Markdown paragraphs.

    Raises:
        InfraError: the directory has no plan, so nothing can be said.
    """
    plan = load_plan(run_dir)
    found = load_records(run_dir, plan)
    if observed:
        kept = Redactor().value([records.to_dict(cause) for cause in observed])
        write_json(run_dir.observed, kept)
    verdict = compute(plan, found, observed or load_observed(run_dir))
    merge_events(run_dir, plan)
    redactor = Redactor()
    write_json(run_dir.verdict, redactor.value(verdict.to_dict()))
    remarks = remark(plan, verdict) if remark else ()
    text = summary.markdown(plan, verdict, found, remarks, held_before(run_dir))
    write_text(run_dir.summary, redactor.text(text))
    for name, content in summary.upstream_results(plan, verdict, found).items():
        write_json(run_dir.path / name, redactor.value(content))
    return verdict


def held_before(run_dir: RunDir) -> dict[str, float]:
    """Seconds in which a backend held the devices before the node programs ran, by phase."""
    return {
        event.phase: float(event.fields.get("seconds") or 0)
        for event in read_events(run_dir.events)
        if event.node == RUNNER and event.what == "phase-end" and event.phase in HOLDING
    }


def load_plan(run_dir: RunDir) -> Plan:
    """The plan of a run directory.

    Raises:
        InfraError: it has none that can be read.
    """
    try:
        return from_json(run_dir.plan.read_text(encoding="utf-8"))
    except OSError as error:
        raise InfraError(
            f"{run_dir.plan}: {error.strerror}", "Name a run directory with --run-dir."
        ) from None
    except ValueError as error:
        raise InfraError(f"{run_dir.plan}: {error}") from None


def load_records(run_dir: RunDir, plan: Plan) -> dict[int, Record | None]:
    """Each node's record; None for one that left none, a torn one or one of another run."""
    found: dict[int, Record | None] = {}
    for node in plan.nodes:
        record = records.record_from(read_json(run_dir.node(node.index).record))
        if record is not None and (record.run != plan.run or record.node != node.index):
            record = None
        found[node.index] = record
    return found


def load_observed(run_dir: RunDir) -> tuple[Cause, ...]:
    """What only the backend saw of a run, as it was kept beside its records."""
    data = read_json(run_dir.observed)
    entries = data if isinstance(data, list) else []
    found = (records.cause_from(entry) for entry in entries if isinstance(entry, dict))
    return tuple(cause for cause in found if cause)


def merge_events(run_dir: RunDir, plan: Plan) -> None:
    """One file with the events of all nodes, and of the runner, by time."""
    own = [event for event in read_events(run_dir.events) if event.node < 0]
    for node in plan.nodes:
        own += read_events(run_dir.node(node.index).events)
    own.sort(key=lambda event: event.time)
    write_text(run_dir.events, "".join(event.to_json() + "\n" for event in own))


def _repeat(run_dir: RunDir, style: str) -> int:
    """Show the verdict of a run that ended before there was a plan, as it was given."""
    content = read_json(run_dir.verdict)
    code = content.get("exit_code") if isinstance(content, dict) else None
    if not isinstance(code, int):
        raise InfraError(f"{run_dir.verdict} is no verdict, and there is no plan to make one of")
    wanted = run_dir.verdict if style == "json" else run_dir.summary
    print(wanted.read_text(encoding="utf-8"))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m steps.report --run-dir DIR [--format text|json]``."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__)
    parser.add_argument("--run-dir", default="runs/latest", help="default: runs/latest")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args(argv)

    def work() -> int:
        path = Path(arguments.run_dir)
        if not path.is_dir():
            raise UsageError(f"{path}: no such run directory", "Name one with --run-dir.")
        if not (path / "plan.json").exists() and (path / "verdict.json").exists():
            return _repeat(RunDir(path), arguments.format)
        verdict = run(RunDir(path))
        if arguments.format == "json":
            json.dump(verdict.to_dict(), sys.stdout, indent=2)
            print()
        else:
            print((path / "summary.md").read_text(encoding="utf-8"))
        return verdict.exit_code

    return cli.guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
