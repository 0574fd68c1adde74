"""The verdict as JUnit XML.

Enters: plan and verdict, or JUnit files of several runs. Leaves: the text of a
JUnit file. Touches nothing, but for :func:`collect`, which writes one and the
lock beside it.

    python -m ci.report.junit all.xml run-1/junit.xml run-2/junit.xml

Product faults are failures, everything else that is not a pass is an error
with its class as type, what was not judged is skipped with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import fcntl
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat
from xml.parsers.expat import ExpatError

from junit_xml import TestCase, TestSuite, to_xml_report_string

from steps.core import door, foreign
from steps.core.case.fields import PHASES
from steps.core.errors import InfraError, UsageError
from steps.core.plan.plan import Plan
from steps.core.record import summary
from steps.core.record.records import BenchResult, Cause, Record, fleet_versions
from steps.core.record.rundir import read_bounded, write_text
from steps.core.record.verdict import PRODUCT_FAULTS, Verdict

_PHASES = [phase for phase in PHASES if phase not in ("bench", "stop", "collect", "request")]


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
    name = foreign.xml(verdict.case)
    cases: list[TestCase] = []
    leader = [phase for phase in verdict.phases if phase["node"] == 0]
    for phase in _PHASES:
        seconds = [float(p["seconds"]) for p in leader if p["name"] == phase]
        if seconds:
            cases.append(TestCase(f"phase {phase}", name, sum(seconds)))
    cases += [_benchmark(name, result, verdict) for result in verdict.benchmarks]
    for check in verdict.checks:
        case = TestCase(f"check {foreign.xml(check.name)}", name, stdout=foreign.xml(check.detail))
        if check.status == "fail":
            add = case.add_failure_info if check.fault in PRODUCT_FAULTS else case.add_error_info
            add(foreign.xml(check.detail), None, check.fault)
        elif check.status == "skipped":
            case.add_skipped_info(foreign.xml(check.detail))
        cases.append(case)
    cases.append(_run(name, verdict))
    properties = {"case": name, "run": verdict.run, "verdict": verdict.verdict}
    if plan is not None:
        properties |= {"model": plan.model, "cluster": plan.cluster.name, "engine": plan.engine}
        properties |= {"case_file": plan.case_file, "nodes": str(len(plan.nodes))}
        properties |= {"npu_minutes": f"{npu_minutes:.2f}", "rehearsed": str(plan.rehearsed)}
        properties["soc"] = "" if plan.rehearsed else plan.cluster.name
        properties |= {f"product.{p.name}": str(p) for p in plan.cluster.products}
        for package, version in sorted(fleet_versions(records or {}).items()):
            properties[f"version.{package}"] = version
    if known_issue:
        properties["known_issue"] = known_issue
    began = datetime.datetime.fromtimestamp(verdict.started, datetime.timezone.utc)
    suite = TestSuite(
        foreign.xml(name),
        cases,
        properties={key: foreign.xml(value) for key, value in properties.items()},
        id=verdict.run,
        timestamp=began.strftime("%Y-%m-%dT%H:%M:%S"),
    )
    text: str = to_xml_report_string([suite])
    return text


def not_run(names: Sequence[str], run: str, reason: str) -> str:
    """A suite for each case of a run that was never begun; its one case is skipped."""
    suites = []
    for name in map(foreign.xml, names):
        case = TestCase("run", name)
        case.add_skipped_info(foreign.xml(reason))
        suites.append(TestSuite(name, [case], id=run))
    text: str = to_xml_report_string(suites)
    return text


def _run(name: str, verdict: Verdict) -> TestCase:
    """The run as a whole: the one case that always says what the verdict says."""
    case = TestCase("run", name, verdict.seconds)
    cause = verdict.cause
    if verdict.verdict == "pass":
        return case
    message = foreign.xml(str(cause) if cause else verdict.verdict)
    detail = foreign.xml(_detail(cause, verdict))
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
    heads, rows = summary.points_table(result)
    lines += [", ".join(f"{h} {c}" for h, c in zip(heads, row, strict=True) if c) for row in rows]
    case = TestCase(
        f"benchmark {foreign.xml(result.name)}",
        name,
        result.seconds,
        stdout=foreign.xml("\n".join(lines)),
    )
    if result.status == "skipped":
        case.add_skipped_info(foreign.xml(result.reason))
    elif result.status in ("fail", "error") and result.fault in PRODUCT_FAULTS:
        case.add_failure_info(foreign.xml(result.reason), failure_type=result.fault)
    elif result.status in ("fail", "error"):
        case.add_error_info(foreign.xml(result.reason), error_type=result.fault or "infra")
    return case


def _judged(passed: bool | None, reason: str) -> str:
    return f"skipped ({reason})" if passed is None else "pass" if passed else "miss"


# Several runs in one file

#: Bounds of a file to add to: bytes, elements and how deep they are nested.
BYTES, ELEMENTS, DEPTH = 32 << 20, 300_000, 100
#: Seconds to wait for others that add to the same file; each needs a moment.
PATIENCE = 30.0
_SECONDS = re.compile(r"(\d+|\d{1,3}(,\d{3})+)(\.\d*)?")


def check(path: Path) -> ElementTree.Element:
    """What a JUnit file holds, below ``testsuites``; nothing when it is empty or not there yet.

    Raises:
        UsageError: it is something else, which would be overwritten.
    """
    hint = "Name another file."
    try:
        data = read_bounded(path.resolve(), BYTES)
        _look_through(data)
        builder = ElementTree.TreeBuilder(insert_comments=True, insert_pis=True)
        blank = b"<testsuites/>"
        top = ElementTree.fromstring(data or blank, ElementTree.XMLParser(target=builder))
    except FileNotFoundError:
        return ElementTree.Element("testsuites")
    except (OSError, RuntimeError, ValueError, LookupError, SyntaxError, ExpatError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: no JUnit file: {why}", hint) from None
    if top.tag == "testsuite":
        only, top = top, ElementTree.Element("testsuites")
        top.append(only)
    if top.tag != "testsuites":
        raise UsageError(f"{path}: no JUnit file: found <{top.tag}>", hint)
    return top


def _look_through(data: bytes) -> None:
    """Raises ValueError for what takes more room than its bytes, or could not be written back."""
    depth = count = 0

    def enter(*_: object) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > DEPTH or count > ELEMENTS:
            raise ValueError(f"more than {ELEMENTS} elements, or more than {DEPTH} deep")

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        raise ValueError("found a document type, which JUnit files have not")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = enter, leave
    parser.StartDoctypeDeclHandler = doctype
    if data:
        parser.Parse(data, True)


def merge(top: ElementTree.Element, suites: Sequence[ElementTree.Element]) -> str:
    """The file with ``suites`` added; of two of the same run the later one.

    What others wrote stays, but for the totals at the top.
    """
    for suite in suites:
        places = [at for at, old in enumerate(top) if _same_run(old, suite)]
        top[slice(places[0], places[0] + 1) if places else slice(len(top), None)] = [suite]
    own = top.findall("testsuite")
    for name, tag in {"tests": "", "failures": "failure", "errors": "error"}.items():
        top.set(name, str(sum(_count(suite, name, tag) for suite in own)))
    if "skipped" in top.attrib:
        top.set("skipped", str(sum(_count(suite, "skipped", "skipped") for suite in own)))
    top.set("time", f"{sum(map(_seconds, own)):.3f}")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def _same_run(one: ElementTree.Element, other: ElementTree.Element) -> bool:
    run = other.get("id") or ""
    same = [one.tag == other.tag, one.get("id") == run, one.get("name") == other.get("name")]
    return len(run) > 3 and all(same)


def _count(suite: ElementTree.Element, name: str, tag: str) -> int:
    """By the test cases below it; by its own word when it has none, as a mere summary."""
    cases = list(suite.iter("testcase"))
    if not cases:
        said = suite.get(name) or ""
        return int(said) if re.fullmatch("[0-9]{1,9}", said) else 0
    return len(cases) if not tag else sum(case.find(tag) is not None for case in cases)


def _seconds(element: ElementTree.Element) -> float:
    """Of a suite or case; of its test cases when its own word is no number."""
    said = (element.get("time") or "")[:30]
    if _SECONDS.fullmatch(said):
        return float(said.replace(",", ""))
    below = element.iter("testcase") if element.tag == "testsuite" else ()
    return sum(_seconds(case) for case in below)


def collect(target: Path, files: Sequence[Path]) -> None:
    """Add the suites of ``files`` to ``target``, which is made when it is absent.

    Raises:
        UsageError: one of them is no JUnit file, or not there.
        InfraError: others hold the file for too long.
    """
    suites: list[ElementTree.Element] = []
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path}: no such file", "Name the junit.xml of a run.")
        suites += check(path).findall("testsuite")
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        text = merge(check(target), suites)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        write_text(target, text)
        if mode is not None:
            target.chmod(mode)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold ``.NAME.lock`` beside a file, which stays: the file itself is replaced at each write."""
    lock = target.with_name(f".{target.name[:200]}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(lock, flags, 0o666)  # NFS locks only what is open for writing
    try:
        end = time.monotonic() + PATIENCE
        while not _taken(handle, target):
            if time.monotonic() > end:
                raise InfraError(
                    f"{target}: another program has held {lock.name} for {PATIENCE:g} s",
                    "Add the run's junit.xml later: python -m ci.report.junit TARGET FILE.",
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _taken(handle: int, target: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        said = f"{target}: {error.strerror}: writers at the same time may lose each other's suites"
        door.warn(said)
    return True


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, help="the file to add to")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what to add")


def work(arguments: argparse.Namespace) -> int:
    """Merge the files."""
    collect(arguments.target, arguments.files)
    return 0


main = door.Verb("python -m ci.report.junit", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
