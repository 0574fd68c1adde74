"""outcome: everything that is made of a run's records once it is over.

Enters: a run directory, what the backend saw, the known issues of the case.
Leaves: verdict, summary, JUnit, HTML report, the result in the history,
GitHub's summary, and the exit code. Touches: the run
directory, the history, the terminal.

What is made besides the verdict never changes it: JUnit, a report or a history
that cannot be written is said, and the exit code stays.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from ci.nightly import history, known
from ci.nightly.known import Known
from steps.core import door, foreign, settings
from steps.core.case.case import Case
from steps.core.errors import Exit, MultinodeError
from steps.core.record import devicetime
from steps.core.record.events import Event
from steps.core.record.outcome import Finished
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir, point_latest, read_json, write_json, write_text
from steps.core.record.verdict import Verdict
from steps.core.redaction import here

#: Seconds after the first process started: the fleet loads, and its own start is over.
WARM_AFTER = 0.5
#: Results of the case that a report and the noise of its gates look back at.
LOOK_BACK = 60
Say = Callable[[str], None]


class Warmer:
    """A listener that loads what the report needs while the run waits for its fleet."""

    def __init__(self) -> None:
        self._thread = threading.Timer(WARM_AFTER, _warm)
        self._thread.daemon = True
        self._begun = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Begin when the first process has been started; each node's reader tells of its own."""
        if event.what == "started" and self._begun.acquire(blocking=False):
            self._thread.start()

    def close(self) -> None:
        """Wait until it is done, if it has begun; the styles of plots are no thread's own."""
        self._thread.cancel()
        if self._thread.ident:
            self._thread.join()


def _warm() -> None:
    from ci.nightly import trend  # noqa: F401
    from ci.report import html, junit  # noqa: F401
    from steps import report  # noqa: F401

    with contextlib.suppress(ImportError):
        html.warm()
        # What was loaded stays to the end: to go through it again is what an exit would wait for.
        gc.freeze()


def settle(
    run_dir: RunDir, case: Case, observed: Sequence[Cause], issues: Sequence[Known], say: Say
) -> tuple[Verdict, int]:
    """Make everything of a run that had a plan; its verdict and the exit code."""
    from ci.nightly import trend  # here: a run begins without them
    from ci.report import junit
    from steps import report

    store, past = _history(case, say)
    over = report.judge(run_dir, observed)
    plan, verdict, records = over.plan, over.verdict, over.records
    entry = known.explaining(issues, verdict)
    remarks = [known.remark(entry)] if entry else []
    code = int(Exit.PASS) if entry and entry.green else verdict.exit_code
    attempt("the noise of gates", lambda: remarks.extend(trend.noise_warnings(plan, past)), say)
    report.write(over, remarks)
    spent, link = over.spent, entry.link if entry else ""
    attempt("the note in verdict.json", lambda: _note(run_dir, remarks, entry, spent), say)
    text = partial(junit.xml, plan, verdict, records, spent.total, link)
    attempt("junit.xml", lambda: write_text(run_dir.junit, text()), say)

    def keep() -> None:
        result = history.result_of(plan, verdict, records, spent.total, history.commit_here())
        past.append(result)
        if store is not None:
            store.append(result)

    attempt("the history", keep, say)
    attempt("report.html", lambda: _html(over, past, remarks), say)
    return verdict, code


def planless(run_dir: RunDir, verdict: Verdict) -> None:
    """Make everything of a run that never had a plan."""
    from ci.report import junit

    verdict = here().value(verdict)
    write_text(run_dir.junit, junit.xml(None, verdict))
    write_json(run_dir.verdict, verdict.to_dict())
    lines = [f"# ❌ {verdict.verdict.upper()}: {foreign.markdown(verdict.case)}"]
    if verdict.cause:
        lines.append(f"**Cause:** {foreign.markdown(verdict.cause.reason)}")
        if verdict.cause.evidence:
            lines.append(foreign.fence(verdict.cause.evidence))
        if verdict.cause.hint:
            lines.append(f"**Next:** {foreign.markdown(verdict.cause.hint)}")
    write_text(run_dir.summary, "\n\n".join(lines) + "\n")
    attempt("report.html", lambda: _refused_html(run_dir, verdict), door.warn)


def _refused_html(run_dir: RunDir, verdict: Verdict) -> None:
    """The report of such a run; without its packages there is none."""
    from ci.report import html

    text = run_dir.case.read_text(encoding="utf-8") if run_dir.case.is_file() else ""
    html.refuse(run_dir, verdict, text)


def latest(run_dir: RunDir) -> None:
    """Let ``runs/latest`` point at the run; no link beside a run directory elsewhere."""
    path = run_dir.path.resolve()
    if path.parent.name == "runs":
        point_latest(path)


def publish(run_dir: RunDir) -> None:
    """The summary, where GitHub wants it."""
    target = settings.read().github_step_summary

    def append() -> None:
        at_once = os.O_NONBLOCK  # a pipe that nobody reads is no place to wait
        with open(
            target, "a", encoding="utf-8", opener=lambda p, f: os.open(p, f | at_once)
        ) as out:
            out.write(run_dir.summary.read_text(encoding="utf-8"))

    if target:
        attempt("GitHub's summary", append, door.warn)


def show(run_dir: RunDir) -> None:
    """The summary for whoever is looking: laid out on a terminal, as it is elsewhere."""
    text = run_dir.summary.read_text(encoding="utf-8")
    print()
    if sys.stdout.isatty() and not settings.read().ci:
        from rich.console import Console
        from rich.markdown import Markdown

        Console(file=door.own(sys.stdout)).print(Markdown(foreign.plain(text), hyperlinks=False))
    else:
        print(text)
    print(f"Files of the run: {run_dir.path}")


def _history(case: Case, say: Say) -> tuple[history.Store | None, list[history.Result]]:
    """The store to write to and the case's results before this run.

    Baselines are made of what is in the store, so a change that is not merged writes nothing there.
    """
    found = settings.read()
    past: list[history.Result] = []
    stores: list[history.Store] = []

    def look() -> None:
        stores.append(history.open_store(found.history))
        past.extend(stores[0].results(history.case_key(case.file, case.only), LOOK_BACK, say))

    if found.history:
        attempt("the history", look, say)
    if found.history and found.pull_request:
        said = f"a run of a pull request ({found.pull_request}): it is compared with the history"
        say(f"{said}, and its result is not kept there")
        return None, past
    return stores[0] if stores else None, past


def _html(over: Finished, results: Sequence[history.Result], remarks: Sequence[str]) -> None:
    from ci.report import html

    html.write(over, results, remarks)


def attempt(what: str, work: Callable[[], object], say: Say) -> None:
    """Do what is no part of the verdict; its failure is said, and changes nothing."""
    try:
        work()
    except ImportError as error:
        say(f"{what} was not made: {door.lacking(error)}")
    except (MultinodeError, OSError) as error:
        say(f"{what} was not made: {error}")
    except Exception as error:
        say(f"{what} was not made: {type(error).__name__}: {error}. Please report it.")


def _note(
    run_dir: RunDir, remarks: Sequence[str], entry: Known | None, spent: devicetime.Spent
) -> None:
    """What the runner adds to ``verdict.json``."""
    data = read_json(run_dir.verdict)
    data["remarks"] = list(remarks)
    data["known_issue"] = {"link": entry.link, "green": entry.green} if entry else None
    data["npu_minutes"] = {
        "total": round(spent.total, 2),
        "wasted": round(spent.wasted, 2),
        "phases": {name: round(value, 2) for name, value in spent.phases.items()},
    }
    write_json(run_dir.verdict, data)
