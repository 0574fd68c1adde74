"""What comes after a verdict: merging JUnit, reading and keeping history. It changes no verdict."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ci import replay, run
from ci.nightly import history
from ci.nightly.history import DirectoryStore, encode
from ci.report import annotate, closing, html, junit
from steps.core import settings
from steps.core.errors import InfraError, UsageError
from steps.core.node.alone import faults
from steps.core.plan.faults import Signal
from steps.core.record import outcome
from steps.core.record.events import EventLog, read_events
from steps.core.record.rundir import RunDir, read_bounded, read_json
from steps.core.system.git import git
from tests.ci import runs
from tests.ci.test_history import result

OURS = """<testsuites><testsuite name="c" id="run-%d" time="2"><testcase name="run"/>
</testsuite></testsuites>"""
SUREFIRE = """<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="LongIT" time="1,204.35" tests="1" errors="0" skipped="0" failures="0">
  <testcase name="soak" classname="LongIT" time="1,204.35"/>
</testsuite>"""
NESTED = """<?xml version="1.0"?><!-- before --><testsuites name="all" owner="them"><!-- kept -->
<properties><property name="p" value="1"/></properties>
<testsuite name="outer" tests="2" failures="1" errors="0" time="3" extra="x">
<system-out>a &lt; b</system-out>
<testsuite name="inner" tests="2" failures="1" errors="0" time="3"><testcase name="a"/>
<testcase name="b"><failure message="m"/></testcase></testsuite></testsuite></testsuites>"""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "ours.xml"
    path.write_text(OURS % 1)
    return path


def merged(tmp_path: Path, text: str, ours: Path) -> ElementTree.Element:
    target = tmp_path / "all.xml"
    target.write_text(text)
    junit.collect(target, [ours])
    return ElementTree.fromstring(target.read_bytes())


@pytest.mark.parametrize(
    ("time", "total"),
    [("1,204.35", 1206.35), ("1.5", 3.5), ("NaN", 9), ("-inf", 9), ("soon", 9), ("", 9)],
)
def test_an_odd_number_in_foreign_junit_is_no_obstacle(
    tmp_path: Path, ours: Path, time: str, total: float
) -> None:
    text = SUREFIRE.replace('time="1,204.35" tests="1"', f'time="{time}" tests="{time}"')
    top = merged(
        tmp_path,
        text.replace('classname="LongIT" time="1,204.35"', 'classname="LongIT" time="7"'),
        ours,
    )
    assert (top.get("tests"), float(top.get("time") or 0)) == ("2", total)
    assert [suite.get("time") for suite in top] == [time, "2"]


def test_nested_suites_count_once_and_nothing_foreign_is_lost(tmp_path: Path, ours: Path) -> None:
    top = merged(tmp_path, NESTED, ours)
    junit.collect(tmp_path / "all.xml", [ours])
    again = ElementTree.fromstring((tmp_path / "all.xml").read_bytes())
    for tree in (top, again):
        assert [tree.get(n) for n in ("tests", "failures", "errors")] == ["3", "1", "0"]
        assert (tree.get("name"), tree.get("owner")) == ("all", "them")
        assert [child.tag for child in tree] == ["properties", "testsuite", "testsuite"]
        assert [s.get("name") for s in tree.iter("testsuite")] == ["outer", "inner", "c"]
        assert tree.find("testsuite").get("extra") == "x"  # type: ignore[union-attr]
        assert tree.findtext("testsuite/system-out") == "a < b"
    assert "<!-- kept -->" in (tmp_path / "all.xml").read_text()


def test_a_merged_file_keeps_its_link_and_its_mode(tmp_path: Path, ours: Path) -> None:
    target, link = tmp_path / "all.xml", tmp_path / "link.xml"
    target.write_text(SUREFIRE)
    target.chmod(0o664)
    link.symlink_to(target)
    junit.collect(link, [ours])
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o664
    assert len(list(ElementTree.fromstring(target.read_bytes()))) == 2


BOMB = '<!DOCTYPE t [<!ENTITY a "%s">]><testsuites>&a;</testsuites>' % ("x" * 99)
ODD_FILES: dict[str, str | bytes] = {
    "torn": "<testsuites><testsuite>",
    "html": "<html/>",
    "bomb": BOMB,
    "deep": "<testsuites>" + "<a>" * 5000 + "</a>" * 5000 + "</testsuites>",
    "many": "<testsuites>" + "<a/>" * 400_000 + "</testsuites>",
    "huge": b"<testsuites>" + b" " * (33 << 20) + b"</testsuites>",
    "utf8": b"<testsuites name='\xff'/>",
    "encoding": "<?xml version='1.0' encoding='klingon'?><testsuites/>",
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_cannot_be_merged_stays_as_it_is(tmp_path: Path, ours: Path, kind: str) -> None:
    target, content = tmp_path / "all.xml", ODD_FILES[kind]
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    before = target.read_bytes()
    with pytest.raises(UsageError, match="no JUnit file"):
        junit.collect(target, [ours])
    assert target.read_bytes() == before


def test_a_pipe_is_no_junit_file_and_is_not_waited_for(tmp_path: Path, ours: Path) -> None:
    os.mkfifo(tmp_path / "all.xml")
    with pytest.raises(UsageError, match="not a regular file"):
        junit.collect(tmp_path / "all.xml", [ours])


def _collect(folder: Path, number: int) -> None:
    for turn in range(4):
        path = folder / f"run-{number}-{turn}.xml"
        path.write_text(OURS % (100 * turn + number))
        junit.collect(folder / "all.xml", [path])


def test_eight_writers_at_once_lose_no_suite(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_collect, args=(tmp_path, number)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    top = ElementTree.fromstring((tmp_path / "all.xml").read_bytes())
    assert len({suite.get("id") for suite in top}) == 32 and top.get("tests") == "32"


def test_a_lock_that_is_never_given_back_is_not_waited_for(
    tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(junit, "PATIENCE", 0.1)
    with (tmp_path / ".all.xml.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InfraError, match="held"):
            junit.collect(tmp_path / "all.xml", [ours])
    junit.collect(tmp_path / "all.xml", [ours])


def test_a_file_system_without_locks_is_said_and_written_to(
    tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    junit.collect(tmp_path / "all.xml", [ours])
    assert "No locks available" in capsys.readouterr().err
    assert (tmp_path / "all.xml").is_file()


# History


def body(**fields: Any) -> str:
    """An entry whose checksum is right and whose content is odd."""
    import hashlib

    text = json.dumps({**json.loads(json.loads(encode(result(1)))["result"]), **fields})
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "result": text})


def _unreadable(path: Path) -> None:
    path.write_text(encode(result(1)))
    path.chmod(0)


def _sparse(path: Path) -> None:
    with path.open("wb") as out:
        out.truncate(1 << 30)


def metric(value: object) -> str:
    return body(benchmarks={"chat": {"output_throughput": value}})


ODD: dict[str, str | bytes | Callable[[Path], object]] = {
    "null benchmarks": body(benchmarks=None),
    "null metrics": body(benchmarks={"chat": None}),
    "a word": metric("fast"),
    "true": metric(True),
    "10^400": metric(10**400),
    "5000 digits": body().replace("1000.0", "1" + "0" * 5000),
    "nan": metric(float("nan")),
    "inf": metric(float("inf")),
    "1e308": metric(1e308),
    "time": body(time=1e300),
    "time before": body(time=-1e11),
    "no time": body(time=None),
    "versions": body(versions=["vllm"]),
    "versions of versions": body(versions={"vllm": {"a": 1}}),
    "commit": body(commit=None),
    "schema": body(schema=2),
    "schema word": body(schema="1"),
    "other case": body(case="other"),
    "deep": "[" * 100_000,
    "deep within": json.dumps({"sha256": "", "result": "[" * 100_000}),
    "utf-8": b"\xff\xfe{}",
    "list": "[]",
    "empty": "",
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "nowhere": lambda path: path.symlink_to("nowhere"),
    "directory": Path.mkdir,
    "huge": _sparse,
    "unreadable": _unreadable,
}


def place(store: Path, content: str | bytes | Callable[[Path], object], name: str = "x") -> Path:
    path = DirectoryStore(store).path / "quickstart" / "2023-11" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_entry_is_named_and_left_out(tmp_path: Path, kind: str) -> None:
    if kind == "unreadable" and not os.getuid():
        pytest.skip("root reads everything")
    store = DirectoryStore(tmp_path)
    store.append(result(2))
    place(tmp_path, ODD[kind])
    said: list[str] = []
    assert [entry.run for entry in store.results("quickstart", 60, said.append)] == ["run-2"]
    assert len(said) == 1 and "quickstart/2023-11/x.json: " in said[0], said


@pytest.mark.parametrize("locked", ["quickstart", "2023-10"])
def test_a_folder_that_nobody_may_list_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    store, iterdir = DirectoryStore(tmp_path), Path.iterdir
    store.append(result(0))
    (store.path / "quickstart" / "2023-10").mkdir()

    def refuse(folder: Path) -> Iterator[Path]:
        if folder.name == locked:
            raise PermissionError(13, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    said: list[str] = []
    assert len(store.results("quickstart", 60, said.append)) == (locked == "2023-10")
    assert len(said) == 1 and f"{locked}: " in said[0]


def test_many_odd_entries_are_one_sentence(tmp_path: Path) -> None:
    for number in range(50):
        place(tmp_path, "{", f"x{number}")
    place(tmp_path, "{", os.fsdecode(b"y\xff\n::error::"))
    said: list[str] = []
    assert DirectoryStore(tmp_path).results("quickstart", 60, said.append) == []
    assert said[0].isprintable() and "/y\\udcff\\n::error::.json: no result" in said[0]
    assert len(said) == 1 and "51 entries" in said[0] and len(said[0]) < 2000


def settled(run_dir: RunDir, said: list[str]) -> int:
    return closing.settle(run_dir, runs.quickstart(), (), (), said.append)[1]


def test_a_passing_run_passes_whatever_the_history_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    for at, content in enumerate(ODD.values()):
        place(tmp_path / "history", content, f"x{at}")
    said: list[str] = []
    assert settled(runs.make(tmp_path / "run"), said) == 0
    assert len([line for line in said if "left out" in line]) == 1
    assert len(DirectoryStore(tmp_path / "history").results("quickstart", 1)) == 1


@pytest.mark.parametrize("where", ["~nobody-of-this-name/x", "\0", "git:/nowhere/at/all"])
def test_a_store_that_cannot_be_opened_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(settings, "read", _with(settings.read(), history=where))
    said: list[str] = []
    assert settled(runs.make(tmp_path / "run"), said) == 0
    assert any("the history was not" in line for line in said)


def _with(found: settings.Settings, **more: Any) -> Callable[[], settings.Settings]:
    from dataclasses import replace

    return lambda: replace(found, **more)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("GITHUB_EVENT_NAME", "pull_request", False),
        ("GITHUB_EVENT_NAME", "pull_request_target", False),
        ("GITHUB_EVENT_NAME", "issue_comment", False),
        ("GITHUB_EVENT_NAME", "merge_group", False),
        ("GITHUB_REF", "refs/pull/7/merge", False),
        ("MULTINODE_PULL_REQUEST", "7", False),
        ("MULTINODE_PULL_REQUEST", "", True),
        ("GITHUB_EVENT_NAME", "schedule", True),
        ("GITHUB_EVENT_NAME", "workflow_dispatch", True),
        ("GITHUB_REF", "refs/heads/main", True),
    ],
)
def test_the_history_takes_nothing_from_pull_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, kept: bool
) -> None:
    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    monkeypatch.setenv(name, value)
    DirectoryStore(tmp_path / "history").append(result(2))
    said: list[str] = []
    assert settled(runs.make(tmp_path / "run"), said) == 0
    assert len(DirectoryStore(tmp_path / "history").results("quickstart")) == 1 + kept
    assert any(f"{name}={value}" in line for line in said) is not kept


@pytest.mark.parametrize(
    "at", ["report.junit.xml", "nightly.history.result_of", "nightly.trend.noise_warnings"]
)
def test_a_bug_in_what_comes_after_changes_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    monkeypatch.setattr(f"ci.{at}", bug)
    said: list[str] = []
    run_dir = runs.make(tmp_path / "run")
    assert settled(run_dir, said) == 0
    assert any("ZeroDivisionError" in line for line in said) and run_dir.summary.is_file()


# Whole runs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """A run of which only the fleet is made up: the backend leaves the files of a passed run."""

    def backend(request: Any) -> tuple[()]:
        runs.make(request.run_dir.path, runs.plan_of(request.run))
        return ()

    monkeypatch.setattr(run, "backend", lambda place: backend)
    target = tmp_path / "run"

    def start(*words: str) -> int:
        return run.main(["quickstart.yaml", "--run-dir", str(target), *words])

    return start


@pytest.mark.parametrize("way", ["--rehearse", "--on=local"])
@pytest.mark.parametrize("spoiled", ["file", "lock", "bug"])
def test_junit_that_cannot_be_merged_at_the_end_is_a_warning(
    tmp_path: Path,
    quick: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
    spoiled: str,
) -> None:
    target = tmp_path / "all.xml"
    if spoiled == "lock":
        (tmp_path / ".all.xml.lock").mkdir()
    elif spoiled == "bug":
        monkeypatch.setattr(junit, "merge", lambda *_: 1 // 0)
    else:
        annotated = annotate.show
        spoil = lambda found: (target.write_text("<torn"), annotated(found))  # noqa: E731
        monkeypatch.setattr(annotate, "show", spoil)
    assert quick(way, "--junit", str(target)) == 0
    shown = capsys.readouterr()
    assert "warning: " in shown.err and "all.xml" in shown.err + str(target)
    assert "# ✅ PASS" in shown.out and "Files of the run" in shown.out
    assert spoiled != "file" or target.read_text() == "<torn"


def test_a_pipe_for_junit_is_refused_before_anything_starts(
    tmp_path: Path, quick: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "all.xml")
    assert quick("--on=local", "--junit", str(tmp_path / "all.xml")) == 2
    assert "not a regular file" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_real_run_merges_foreign_junit_and_reads_odd_history(
    tmp_path: Path,
    quick: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    place(tmp_path / "history", os.mkfifo)
    os.mkfifo(tmp_path / "step-summary")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step-summary"))
    target = tmp_path / "all.xml"
    target.write_text(SUREFIRE)
    assert quick("--on=local", "--junit", str(target)) == 0
    assert len(ElementTree.fromstring(target.read_bytes()).findall("testsuite")) == 2
    (kept,) = DirectoryStore(tmp_path / "history").results("quickstart", 60, lambda text: None)
    assert kept.verdict == "pass" and not kept.rehearsed
    assert "x.json: not a regular file" in (tmp_path / "run" / "events.jsonl").read_text()


# Reading what others wrote


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "huge", "deep", "nowhere"])
def test_an_odd_json_file_of_a_run_is_none(tmp_path: Path, kind: str) -> None:
    assert read_json(place(tmp_path, ODD[kind])) is None


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_bounded(path, 10) == b"x" * 10
    with pytest.raises(OSError, match="longer than 9 bytes"):
        read_bounded(path, 9)


@pytest.mark.parametrize(
    "odd", ["[1]", '[{"evidence": 3}]', '[{"reason": null, "evidence": [7]}]', "[" * 99_999, "7"]
)
@pytest.mark.parametrize("name", ["observed.json", "node-0/record.json", "node-0/processes.json"])
def test_an_odd_file_in_a_run_directory_costs_no_verdict(
    tmp_path: Path, odd: str, name: str
) -> None:
    run_dir = runs.make(tmp_path / "run")
    (run_dir.path / name).write_text(odd)
    aim = faults.Aim([], run_dir, EventLog(None, "", -1), lambda _: 0)
    assert aim._pid(Signal(9, 0, "server", "", 0.0, "")) == 0
    event = (
        '{"time": 1, "run": "", "node": -1, "phase": "pull", "what": "phase-end", "seconds": %s}'
    )
    run_dir.events.write_text("".join(event % f"{x}\n" for x in ('"x"', "[]", "true", "null")))
    assert outcome.read(run_dir).verdict.exit_code in (0, 3)
    assert html.known_of(run_dir) == []


def test_events_that_are_a_pipe_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    assert read_events(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize("remarks", ["null", "7", '{"a": 1}'])
def test_odd_remarks_are_none(tmp_path: Path, remarks: str) -> None:
    run_dir = runs.make(tmp_path / "run")
    run_dir.verdict.write_text(f'{{"remarks": {remarks}, "cause": "odd"}}')
    assert html.known_of(run_dir) == []
    assert replay._told(run_dir) == "None"


def test_the_store_names_no_directory_of_its_own(tmp_path: Path) -> None:
    bare, work = tmp_path / "r.git", tmp_path / "w"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    store = history.open_store(f"git:{bare}#results")
    store.append(result(1))
    git(tmp_path, "clone", "-q", "-b", "results", str(bare), str(work))
    place(work, lambda path: path.symlink_to("/dev/zero"))
    for words in (["add", "-A"], ["commit", "-qm", "odd"], ["push", "-q"]):
        git(work, *words)
    said: list[str] = []
    assert len(store.results("quickstart", 60, said.append)) == 1
    assert "v1/quickstart/2023-11/x.json: not a regular file" in said[0]
    assert "multinode-history-" not in said[0]


def test_a_result_of_a_pull_request_is_not_kept_afterwards_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULTINODE_PULL_REQUEST", "7")
    assert history.main([str(tmp_path), "--store", str(tmp_path / "store")]) == 2
    assert "run of a pull request" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
