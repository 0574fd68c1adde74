"""run: one case from one place, to a verdict.

Enters: a case and where to run it. Leaves: a run directory with everything.
Touches: through the backend; the terminal.

    python -m ci.run CASE --rehearse        stand-ins on this machine
    python -m ci.run CASE --on local        the real engine on this machine
    python -m ci.run CASE --on hosts        machines over SSH
    python -m ci.run CASE --on k8s          a LeaderWorkerSet
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ci import row
from ci.backends import BACKENDS, Request, backend
from ci.nightly import known
from ci.nightly.known import Known
from ci.report import annotate, closing
from ci.report.live import Live
from steps.core import door, foreign, settings
from steps.core.case.build import load_case
from steps.core.case.case import Case
from steps.core.case.masked import mask
from steps.core.errors import (
    CaseError,
    Exit,
    MultinodeError,
    Problem,
    Severity,
    UsageError,
    errors_of,
)
from steps.core.node import contract, wishes
from steps.core.node.wishes import Wishes
from steps.core.plan import products
from steps.core.record import cleaning, portable
from steps.core.record.events import RUNNER, EventLog
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir, new_run_id, write_json, write_text
from steps.core.record.verdict import Verdict
from steps.core.redaction import here
from steps.validate import validate_one

WAYS = (
    "Say where to run it:\n"
    "      --on k8s      a LeaderWorkerSet on the cluster of your kubeconfig\n"
    "      --on hosts    the machines in the case's cluster_hosts, or --hosts A,B\n"
    "      --rehearse    stand-ins on this machine, no NPU needed"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--on", choices=tuple(BACKENDS), help="where to run it")
    parser.add_argument("--hosts", default="", help="with --on hosts: addresses, or a hosts file")
    parser.add_argument("--run-dir", help="default: runs/<run id>")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="add the run's JUnit to FILE")
    parser.add_argument("--verbose", action="store_true", help="show every event")
    parser.add_argument("--keep", action="store_true", help="with --on k8s: delete nothing")
    wishes.add_shape_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out one command line; the exit code is the verdict's, or the worst of several."""
    asked = wishes.wishes_of(arguments, case_may_rehearse=True)
    path = wishes.find_case(asked.case)
    if asked.junit:
        from ci.report import junit

        junit.check(asked.junit)
    cases = () if asked.only else row.names(path)
    if len(cases) < 2:
        return _one(asked, path)
    try:
        check(path)
    except CaseError as error:
        run_id = new_run_id()
        run_dir = RunDir(asked.run_dir or Path("runs") / run_id).make()
        refusal = partial(_refuse, asked, run_dir, run_id, path, error)
        closing.attempt("the report", refusal, door.warn)
        raise
    # Looked up once: all cases of a file test the same commit of a branch.
    return row.run(asked.with_products(), path, cases, _one)


def _one(asked: Wishes, path: Path) -> int:
    """Carry out one case; the exit code is the verdict's."""
    run_id = new_run_id()
    run_dir = RunDir(asked.run_dir or Path("runs") / run_id)
    run_dir.check_unused()
    try:
        warnings = check(path, asked.only)  # which says more than loading, of a refused case
        case = load_case(path, only=asked.only)
        asked = choose(case, asked)
    except CaseError as error:
        refusal = partial(_refuse, asked, run_dir.make(), run_id, path, error)
        closing.attempt("the report", refusal, door.warn)
        raise
    issues = known.of_case(known.load(), case.file, datetime.date.today(), case.only)
    run_dir.make().claim()
    door.keep_in(run_dir.path)
    run_dir.reserve()
    write_text(run_dir.case, mask(path.read_text(encoding="utf-8-sig")))
    if asked.products:
        _keep_products(run_dir, asked)
    closing.latest(run_dir)
    live = Live(asked.verbose)
    warmer = closing.Warmer()
    events = EventLog(run_dir.events, run_id, RUNNER, listeners=[live, warmer])
    request = Request(case, run_id, run_dir, events, asked)
    began = time.time()
    if common := here().unsearched:
        names = ", ".join(common)
        events.emit("note", text=f"{names}: too short or too common: hidden only beside that name")
    for warning in warnings:
        events.emit("note", text=f"{warning.rule} {warning.place}: {warning.message}")
    try:
        with _signals(request):
            try:
                observed = _carry_out(request)
                warmer.close()
                run_dir.release()
                code = conclude(request, observed, issues, began, warnings)
            finally:
                for end in request.ends:
                    end()
    except CaseError as error:
        refusal = partial(_refuse, asked, run_dir, run_id, path, error)
        closing.attempt("the report", refusal, door.warn)
        raise
    finally:
        for end in (warmer.close, live.close, events.close, partial(clean, run_dir)):
            closing.attempt("a clean end", end, door.warn)
    closing.attempt("the collected JUnit", partial(_collect, asked, run_dir), door.warn)
    closing.attempt("the summary on the terminal", partial(closing.show, run_dir), door.warn)
    return code


def _keep_products(run_dir: RunDir, asked: Wishes) -> None:
    """The products under test as a profile has them, so that a replay tests the same."""
    entries = {product.name: products.entry(product) for product in asked.products}
    path = run_dir.profile(products.KEPT)
    path.parent.mkdir(exist_ok=True)
    content = {"image": asked.image or "none", "products": entries}
    here().study(content)
    write_json(path, here().value(content))


def _collect(asked: Wishes, run_dir: RunDir) -> None:
    """Add the run's JUnit to the file that was asked for; the run is over, so no more is due."""
    if asked.junit:
        from ci.report import junit

        add = partial(junit.collect, asked.junit, [run_dir.junit])
        closing.attempt(f"the JUnit in {asked.junit}", add, door.warn)


def clean(run_dir: RunDir) -> None:
    """Take secrets out of the files at the top, the plan had to have them until now, and out of
    those of a node that could not do it itself.
    """
    nodes = [path.parent for path in run_dir.path.glob("node-*/record.json")]
    for path in cleaning.texts(run_dir.path):
        if not {*path.parents} & {*nodes}:
            with contextlib.suppress(OSError):
                cleaning.clean(path, here())


def check(path: Path, only: str = "") -> list[Problem]:
    """The linter's warnings. What only the cluster can tell (MN02x) is left to the backend.

    Args:
        only: the case that is meant, where the file holds several.

    Raises:
        CaseError: with the linter's errors.
    """
    _, found = validate_one(path, only)
    problems = [problem for problem in found if not problem.rule.startswith("MN02")]
    if errors_of(problems):
        raise CaseError(errors_of(problems))
    return [problem for problem in problems if problem.severity is Severity.WARNING]


def choose(case: Case, asked: Wishes) -> Wishes:
    """The same wishes with the backend they mean; never a silent rehearsal.

    Raises:
        UsageError: nothing says where to run.
    """
    asked = asked.of_case(case)
    asked = replace(asked, place=asked.place or _place(case, asked))
    if asked.image and asked.place != "k8s":
        raise UsageError(
            "--image works with --on k8s, where pods are made of it",
            "Elsewhere run the command inside of the image.",
        )
    return asked


def _place(case: Case, asked: Wishes) -> str:
    if asked.rehearsal is not None:
        return "local"
    if asked.hosts or case.cluster_hosts:
        return "hosts"
    found = settings.read()
    if found.kubeconfig or found.kubeconfig_b64 or (Path.home() / ".kube" / "config").is_file():
        return "k8s"
    raise UsageError("no cluster: no kubeconfig, no cluster_hosts in the case", WAYS)


def _carry_out(request: Request) -> tuple[Cause, ...]:
    """Run the backend; its own errors become causes, so that a verdict is always written."""
    began = time.time()
    try:
        return _of_interrupt(request, backend(request.wishes.place)(request), began)
    except CaseError:
        raise
    except MultinodeError as error:
        return (_cause_of(error, request),)
    except Exception as error:
        return (_cause_of(door.failure(error), request),)


def _of_interrupt(request: Request, observed: tuple[Cause, ...], began: float) -> tuple[Cause, ...]:
    """Node programs that an interrupt ended without a record are its consequence."""
    at = request.interrupted_at
    late = [cause for cause in observed if at and cause.at >= at]
    if not late or any(cause.kind == "interrupt" for cause in observed):
        return observed
    rest = (replace(cause, consequence=cause in late) for cause in observed)
    return (contract.interrupted(began, at), *rest)


def _cause_of(error: MultinodeError, request: Request) -> Cause:
    verdict = "config" if error.exit_code is Exit.USAGE else "infra"
    request.events.emit("cause", text=error.message, verdict=verdict)
    return Cause("config", verdict, error.message, hint=error.hint, at=time.time(), phase="start")


def conclude(
    request: Request,
    observed: tuple[Cause, ...],
    issues: Sequence[Known],
    began: float,
    warnings: Sequence[Problem] = (),
) -> int:
    """Everything that is made of a run directory, whatever is in it; the exit code."""
    run_dir, case = request.run_dir, request.case
    verdict: Verdict | None = None
    if run_dir.plan.exists():
        try:
            verdict, code = closing.settle(run_dir, case, observed, issues, request.say)
        except Exception as error:
            told = error if isinstance(error, MultinodeError) else door.failure(error)
            observed = (_cause_of(told, request),)
    if verdict is None:
        cause = observed[0] if observed else Cause("internal", "no-verdict", "no plan was made")
        took = time.time() - began
        verdict = Verdict(
            request.run, case.name, cause.verdict, cause, (), (), (), took, began, False
        )
        code = verdict.exit_code
        closing.planless(run_dir, verdict)
    problems = [*annotate.of_verdict(case, verdict), *warnings]
    for what, work in (
        ("names of files", partial(_make_portable, request)),
        ("the list of warnings", partial(_add_warnings, run_dir, warnings)),
        ("GitHub's summary", partial(closing.publish, run_dir)),
        ("GitHub's annotations", partial(annotate.show, problems)),
    ):
        closing.attempt(what, work, request.say)
    return code


def _make_portable(request: Request) -> None:
    """Nodes see to what they collect; one that died left its directory as it was."""
    if changed := portable.make(request.run_dir.path):
        request.say(changed)


def _add_warnings(run_dir: RunDir, warnings: Sequence[Problem]) -> None:
    """What the linter warned of, at the end of the summary."""
    if not warnings:
        return
    lines = ["", "## Warnings of validate", ""]
    lines += [f"- {w.rule} line {w.place.line}: {foreign.markdown(w.message)}" for w in warnings]
    text = run_dir.summary.read_text(encoding="utf-8")
    write_text(run_dir.summary, text + here().text("\n".join(lines)) + "\n")


def _refuse(asked: Wishes, run_dir: RunDir, run_id: str, path: Path, error: CaseError) -> None:
    """Files of a run whose case is wrong: CI wants a report of that too."""
    first = error.problems[0]
    cause = Cause(
        "config",
        "config",
        f"{len(error.problems)} problems, the first: {first.message}",
        phase="validate",
        evidence=tuple(str(problem) for problem in error.problems[:200]),
        hint=first.hint,
        at=time.time(),
    )
    now = time.time()
    verdict = Verdict(run_id, path.stem, "config", cause, (), (), (), 0.0, now, False)
    with contextlib.suppress(OSError, UnicodeError):
        write_text(run_dir.case, mask(path.read_text(encoding="utf-8-sig")))
    closing.planless(run_dir, verdict)
    clean(run_dir)
    closing.publish(run_dir)
    closing.latest(run_dir)
    _collect(asked, run_dir)
    annotate.show(error.problems)


@contextlib.contextmanager
def _signals(request: Request):  # type: ignore[no-untyped-def]
    """Ctrl-C, SIGTERM, SIGHUP: tell the backend, which stops, collects and comes back."""

    def handle(number: int, _frame: object) -> None:
        request.interrupts += 1
        request.interrupted_at = request.interrupted_at or time.time()
        request.number = number
        request.interrupted.set()
        for listener in request.on_interrupt:
            listener(request.interrupts)

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


main = door.Verb("multinode", __doc__, _options, run)

if __name__ == "__main__":
    sys.exit(main())
