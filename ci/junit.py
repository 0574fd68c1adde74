"""The verdict as JUnit XML.

Enters: plan and verdict, or JUnit files of several runs. Leaves: the text of a
JUnit file. Touches nothing, but for :func:`collect`, which writes one.

    python -m ci.junit all.xml run-1/junit.xml run-2/junit.xml

Product faults are failures, everything else that is not a pass is an error
with its class as type, what was not judged is skipped with the reason.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from junit_xml import TestCase, TestSuite, to_xml_report_string

from steps.core import door
from steps.core.errors import UsageError
from steps.core.plan import LEADER, Plan
from steps.core.records import BenchResult, Cause, Record
from steps.core.rundir import write_text
from steps.core.verdict import PRODUCT_FAULTS, Verdict

_PHASES = ("join", "preflight", "install", "pool", "load", "probe", "proof")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def xml(
    plan: Plan | None,
    verdict: Verdict,
    records: Mapping[int, Record | None] | None = None,
    npu_minutes: float = 0.0,
    known_issue: str = "",
) -> str:
    """One suite: a case for each phase, benchmark and check, and one for the run.

    The form is what GitHub's, dorny/test-reporter's and Jenkins' readers have
    in common: Jenkins' jenkins-junit.xsd, of which the tests hold a condensation.
    """
    name = _clean(verdict.case)
    cases: list[TestCase] = []
    leader = [phase for phase in verdict.phases if phase["node"] == 0]
    for phase in _PHASES:
        seconds = [float(p["seconds"]) for p in leader if p["name"] == phase]
        if seconds:
            cases.append(TestCase(f"phase {phase}", name, sum(seconds)))
    cases += [_benchmark(name, result, verdict) for result in verdict.benchmarks]
    for check in verdict.checks:
        case = TestCase(f"check {_clean(check.name)}", name, stdout=_clean(check.detail))
        if check.status == "fail":
            case.add_failure_info(_clean(check.detail), failure_type="functional")
        elif check.status == "skipped":
            case.add_skipped_info(_clean(check.detail))
        cases.append(case)
    cases.append(_run(name, verdict))
    properties = {"case": name, "run": verdict.run, "verdict": verdict.verdict}
    if plan is not None:
        properties |= {"model": plan.model, "cluster": plan.cluster.name, "engine": plan.engine}
        properties |= {"case_file": plan.case_file, "nodes": str(len(plan.nodes))}
        properties |= {"npu_minutes": f"{npu_minutes:.2f}", "rehearsed": str(plan.rehearsed)}
        properties["soc"] = "" if plan.rehearsed else plan.cluster.name
        first = (records or {}).get(LEADER)
        for package, version in sorted((first.versions if first else {}).items()):
            properties[f"version.{package}"] = version
    if known_issue:
        properties["known_issue"] = known_issue
    began = datetime.datetime.fromtimestamp(verdict.started, datetime.timezone.utc)
    suite = TestSuite(
        _clean(name),
        cases,
        properties={key: _clean(value) for key, value in properties.items()},
        id=verdict.run,
        timestamp=began.strftime("%Y-%m-%dT%H:%M:%S"),
    )
    text: str = to_xml_report_string([suite])
    return text


def _run(name: str, verdict: Verdict) -> TestCase:
    """The run as a whole: the one case that always says what the verdict says."""
    case = TestCase("run", name, verdict.seconds)
    cause = verdict.cause
    if verdict.verdict == "pass":
        return case
    message = _clean(str(cause) if cause else verdict.verdict)
    detail = _clean(_detail(cause, verdict))
    if verdict.verdict in PRODUCT_FAULTS:
        case.add_failure_info(message, detail, verdict.verdict)
    else:
        case.add_error_info(message, detail, verdict.verdict)
    return case


def _detail(cause: Cause | None, verdict: Verdict) -> str:
    if cause is None:
        return ""
    lines = [*cause.evidence]
    if cause.log:
        lines.append(f"log: {cause.log}")
    if cause.hint:
        lines.append(f"next: {cause.hint}")
    lines += [f"then: {entry}" for entry in verdict.consequences]
    return "\n".join(lines)


def _benchmark(name: str, result: BenchResult, verdict: Verdict) -> TestCase:
    lines = [f"{metric} {value:g}" for metric, value in result.metrics.items()]
    lines += [f"gate {g.gate}: {_judged(g.passed, g.reason)}" for g in result.gates]
    case = TestCase(
        f"benchmark {_clean(result.name)}", name, result.seconds, stdout=_clean("\n".join(lines))
    )
    if result.status == "skipped":
        case.add_skipped_info(_clean(result.reason))
    elif result.status in ("fail", "error") and result.fault in PRODUCT_FAULTS:
        case.add_failure_info(_clean(result.reason), failure_type=result.fault)
    elif result.status in ("fail", "error"):
        case.add_error_info(_clean(result.reason), error_type=result.fault or "infra")
    return case


def _judged(passed: bool | None, reason: str) -> str:
    return f"skipped ({reason})" if passed is None else "pass" if passed else "miss"


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)


# Several runs in one file

_COUNTS = ("tests", "failures", "errors", "disabled")


def check(path: Path) -> list[ElementTree.Element]:
    """The suites that a JUnit file holds; none when there is no such file yet.

    Raises:
        UsageError: it is something else, which would be overwritten.
    """
    if not path.exists():
        return []
    try:
        top = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UsageError(f"{path}: no JUnit file: {error}", "Name another file.") from None
    if top.tag not in ("testsuites", "testsuite"):
        raise UsageError(f"{path}: no JUnit file, found <{top.tag}>", "Name another file.")
    return [top] if top.tag == "testsuite" else list(top.iter("testsuite"))


def merge(suites: Sequence[ElementTree.Element]) -> str:
    """One file of all suites; of two of the same run the later one."""
    kept: dict[tuple[str, str], ElementTree.Element] = {}
    for at, suite in enumerate(suites):
        run = suite.get("id") or ""
        kept[(suite.get("name") or "", run if len(run) > 3 else f"{run}#{at}")] = suite
    counts = {
        name: str(sum(int(suite.get(name) or 0) for suite in kept.values())) for name in _COUNTS
    }
    seconds = sum(float(suite.get("time") or 0) for suite in kept.values())
    top = ElementTree.Element("testsuites", {**counts, "time": f"{seconds:.3f}"})
    top.extend(kept.values())
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def collect(target: Path, files: Sequence[Path]) -> None:
    """Add the suites of ``files`` to ``target``, which is made when it is absent.

    Raises:
        UsageError: one of them is no JUnit file, or not there.
    """
    suites = check(target)
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path}: no such file", "Name the junit.xml of a run.")
        suites += check(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, merge(suites))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, help="the file to add to")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what to add")


def work(arguments: argparse.Namespace) -> int:
    """Merge the files."""
    collect(arguments.target, arguments.files)
    return 0


main = door.Verb("python -m ci.junit", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
