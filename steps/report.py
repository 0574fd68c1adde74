"""report: the verdict of a run directory, for programs and for people.

Enters: a run directory with a plan and records. Leaves: ``verdict.json``,
``summary.md``, ``results-*.json`` in upstream's form, one ``events.jsonl`` of
all nodes. Touches: those files. JUnit and HTML are made on the runner (``ci``).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from steps.core import door
from steps.core.case.numbers import dumps
from steps.core.errors import InfraError
from steps.core.node.alone import holding
from steps.core.plan.plan import Plan
from steps.core.record import outcome, records, summary, upstream
from steps.core.record.events import read_events
from steps.core.record.outcome import Finished
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir, read_json, write_json, write_text
from steps.core.redaction import here


def run(run_dir: RunDir, observed: Sequence[Cause] = ()) -> Finished:
    """Compute and write the verdict of a run directory; for arguments, see :func:`judge`."""
    over = judge(run_dir, observed)
    write(over)
    return over


def judge(run_dir: RunDir, observed: Sequence[Cause] = ()) -> Finished:
    """The run of a directory with its verdict.

    Args:
        observed: causes that only the backend saw; kept in the directory, so that a
            later reading of the run comes to the same verdict.

    Raises:
        InfraError: the directory has no plan, so nothing can be said.
    """
    over = outcome.read(run_dir, observed)
    if observed:
        kept = here().value(tuple(observed))
        write_json(run_dir.observed, [records.to_dict(cause) for cause in kept])
    return over


def write(over: Finished, remarks: Sequence[str] = ()) -> None:
    """Write what is made of a run everywhere.

    Args:
        remarks: what the runner has to say about the verdict, as Markdown paragraphs.
    """
    run_dir = over.run_dir
    write_json(run_dir.verdict, over.verdict.to_dict())
    write_text(run_dir.summary, summary.markdown(over, remarks))
    with contextlib.suppress(OSError):  # a full disk; the events of each node are there
        merge_events(run_dir, over.plan)
    try:
        for name, content in upstream.results(over.plan, over.verdict, over.records).items():
            write_json(run_dir.path / name, content)
    except Exception as error:  # a form for others decides no verdict
        door.warn(door.failure(error).message)


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


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", default="runs/latest", help="default: runs/latest")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def work(arguments: argparse.Namespace) -> int:
    """Print the verdict; the exit code is the verdict's."""
    run_dir = RunDir(Path(arguments.run_dir))
    run_dir.check_there("Name one with --run-dir.")
    door.keep_in(run_dir.path)
    if not run_dir.plan.exists() and run_dir.verdict.exists():
        return _repeat(run_dir, arguments.format)
    holding.settle(run_dir)
    verdict = run(run_dir).verdict
    if arguments.format == "json":
        print(dumps(verdict.to_dict(), indent=2))
    else:
        print(run_dir.summary.read_text(encoding="utf-8"))
    return verdict.exit_code


main = door.Verb("report", __doc__, _options, work)


if __name__ == "__main__":
    raise SystemExit(main())
