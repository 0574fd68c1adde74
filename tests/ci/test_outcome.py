"""What is made of a run once it is over: summary, JUnit, report, annotations, exit code."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import struct
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ci import run
from ci.nightly import known
from ci.nightly.history import DirectoryStore
from ci.report import annotate, closing, html, junit, logs
from ci.report.requests import samples
from steps import report
from steps.bench import judge, to_confirm
from steps.bench_drivers import Measurement
from steps.bench_drivers.aisbench import results
from steps.core.case import gates
from steps.core.case.case import Benchmark
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record import devicetime, outcome
from steps.core.record.events import Event
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir, read_json
from steps.core.record.verdict import Verdict, compute
from tests.bench.conftest import SAMPLES
from tests.ci import runs
from tests.core.records import death, records_of

XSD = Path(__file__).parents[1] / "data" / "junit" / "jenkins-junit.xsd"


def settle(run_dir: RunDir, issues: tuple[known.Known, ...] = ()) -> tuple[Verdict, int, list[str]]:
    said: list[str] = []
    verdict, code = closing.settle(run_dir, runs.quickstart(), (), issues, said.append)
    return verdict, code, said


@pytest.fixture
def passed(tmp_path: Path) -> RunDir:
    return runs.make(tmp_path / "run")


@pytest.fixture
def failed(tmp_path: Path) -> RunDir:
    cause = death(1020.0, 1, log="node-1/server.log", evidence=("E <boom> lost",))
    return runs.make(tmp_path / "run", outcome="crash", cause=cause, benchmarks=())


@pytest.mark.parametrize(
    ("fault", "told"), [("kill9@1:+400", True), ("slow=3@0", False), ("crash@0:term", False)]
)
def test_a_pass_says_which_faults_changed_nothing(tmp_path: Path, fault: str, told: bool) -> None:
    plan = runs.plan_of()
    cluster = replace(plan.cluster, rehearsal=Rehearsal(faults=(fault,)))
    settle(runs.make(tmp_path / "other", replace(plan, cluster=cluster)))
    said = (tmp_path / "other" / "summary.md").read_text()
    assert (f"Fault `{fault}` changed nothing" in said) == told


def test_a_passed_run_leaves_every_file(passed: RunDir, monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    verdict, code, said = settle(passed)
    assert (verdict.verdict, code, said) == ("pass", 0, [])
    names = {path.name for path in passed.path.iterdir()}
    assert {"verdict.json", "summary.md", "junit.xml", "report.html", "events.jsonl"} <= names
    (kept,) = DirectoryStore(tmp_path / "history").results("quickstart")
    assert kept.benchmarks == {"chat": runs.METRICS} and kept.npu_minutes > 0


def test_the_summary_says_verdict_and_cause_first(failed: RunDir) -> None:
    settle(failed)
    lines = [line for line in failed.summary.read_text().splitlines() if line]
    assert lines[0].startswith("# ❌ CRASH: quickstart")
    assert lines[1].startswith("**Cause:** node 1 server: died")
    text = failed.summary.read_text()
    assert "after the first failure" in text and "- `node-1/server.log`" in text
    assert "Versions differ between nodes" in text and "| vllm | 0.10 | 0.11 |" in text


def test_minutes_are_those_of_all_devices(failed: RunDir) -> None:
    over = outcome.read(failed)
    spent = devicetime.spent(over.plan, over.verdict, over.records, {"pull": 30.0})
    devices = 2 * 2
    assert spent.total == pytest.approx(devices * (60 + 30) / 60)
    assert spent.phases["pull"] == pytest.approx(devices * 30 / 60)
    assert sum(spent.phases.values()) == pytest.approx(spent.total)
    assert spent.wasted == pytest.approx((2 * 40 + 2 * 41) / 60)


@pytest.mark.parametrize("green", [False, True])
def test_a_known_failure_is_named_and_green_only_if_said(failed: RunDir, green: bool) -> None:
    import datetime

    from steps.core.errors import Place

    entry = known.Known(
        "boom", "*", "https://example.com/1", datetime.date.max, "it booms", green, Place("k.yaml")
    )
    verdict, code, _ = settle(failed, (entry,))
    assert verdict.verdict == "crash" and code == (0 if green else 1)
    assert "**Known issue:** it booms" in failed.summary.read_text()
    assert read_json(failed.verdict)["known_issue"]["green"] is green


def test_what_cannot_be_made_is_said_and_changes_nothing(passed: RunDir, monkeypatch) -> None:
    monkeypatch.setenv("MULTINODE_HISTORY", "/proc/nowhere")
    _, code, said = settle(passed)
    assert code == 0 and any("the history was not made" in line for line in said)


def test_junit_is_valid_for_jenkins_and_has_its_properties(failed: RunDir) -> None:
    etree = pytest.importorskip("lxml.etree")
    schema = etree.XMLSchema(etree.parse(str(XSD)))
    settle(failed)
    tree = etree.parse(str(failed.junit))
    assert schema.validate(tree), schema.error_log
    found = {p.get("name"): p.get("value") for p in tree.iter("property")}
    assert found["verdict"] == "crash" and found["version.cann"] == "8.3"
    assert float(found["npu_minutes"]) > 0 and found["soc"]
    bad = Verdict(
        "r", "a\x00<&>", "infra", Cause("x", "infra", "\ud800 \x1b["), (), (), (), 1, 0, False
    )
    assert schema.validate(etree.fromstring(junit.xml(None, bad).encode("utf-8")))


def test_a_miss_is_annotated_at_its_benchmark(passed: RunDir, capsys, monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    case = runs.quickstart()
    missed = runs.bench(status="fail", fault="performance", reason="gate missed: 3 < 4")
    plan = runs.plan_of()
    verdict = compute(plan, records_of(plan, benchmarks=(missed,)))
    annotate.show(annotate.of_verdict(case, verdict))
    line = case.place("benchmarks", "chat").line
    assert re.search(rf"^::error file=.*quickstart.yaml,line={line},", capsys.readouterr().out)


def test_what_only_the_backend_saw_is_there_when_the_run_is_read_again(passed: RunDir) -> None:
    pytest.importorskip("matplotlib")
    seen = Cause("lost", "infra", "the pod was evicted", 1, process="pod", at=1030.0)
    closing.settle(passed, runs.quickstart(), (seen,), (), lambda text: None)
    assert read_json(passed.verdict)["verdict"] == "infra"
    assert report.run(passed).verdict.cause == seen
    assert "the pod was evicted" in html.write(outcome.read(passed)).read_text()


def test_runs_are_merged_into_one_junit_each_once(failed: RunDir, tmp_path: Path) -> None:
    etree = pytest.importorskip("lxml.etree")
    settle(failed)
    target = tmp_path / "out" / "all.xml"
    other = tmp_path / "other.xml"
    other.write_text(failed.junit.read_text().replace('"run-1"', '"run-2"'))
    assert junit.main([str(target), str(failed.junit), str(other)]) == 0
    junit.collect(target, [failed.junit])
    schema = etree.XMLSchema(etree.parse(str(XSD)))
    tree = etree.parse(str(target))
    assert schema.validate(tree), schema.error_log
    assert sorted(s.get("id") for s in tree.iter("testsuite")) == ["run-1", "run-2"]
    assert tree.getroot().get("failures") == "2"
    assert len([p for p in tree.iter("property") if p.get("name") == "npu_minutes"]) == 2


@pytest.mark.parametrize("text", ["not xml", "<html/>"])
def test_what_is_no_junit_is_not_overwritten(failed: RunDir, tmp_path: Path, text: str) -> None:
    settle(failed)
    target = tmp_path / "mine.txt"
    target.write_text(text)
    assert junit.main([str(target), str(failed.junit)]) == 2
    assert target.read_text() == text
    assert junit.main([str(tmp_path / "new.xml"), str(tmp_path / "absent.xml")]) == 2


def test_a_wrong_case_leaves_a_report_with_every_problem(tmp_path: Path, capsys) -> None:
    pytest.importorskip("jinja2")
    case = tmp_path / "broken.yaml"
    case.write_text(
        "model: demo/<x>\nnum_nodes: two\nnpu_per_node: -1\nbenchmarks: {}\ndeployment: []\n"
    )
    place, merged = tmp_path / "run", tmp_path / "all.xml"
    given = [str(case), "--rehearse", "--run-dir", str(place), "--junit", str(merged)]
    assert run.main(given) == 2
    for name in ("summary.md", "report.html", "junit.xml"):
        text = (place / name).read_text()
        assert "num_nodes" in text and "npu_per_node" in text, name
    page = (place / "report.html").read_text()
    assert "demo/&lt;x&gt;" in page and "   2  num_nodes: two" in page
    assert 'errors="1"' in merged.read_text()


def test_a_wrong_case_leaves_no_secret(tmp_path: Path, capsys) -> None:
    secret = "hf_" + "a1" * 12
    case = tmp_path / "broken.yaml"
    case.write_text(f"model: demo/x\nnum_nodes: {secret}\nnpu_per_node: 1\ndeployment: []\n")
    assert run.main([str(case), "--rehearse", "--run-dir", str(tmp_path / "run")]) == 2
    files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
    assert len(files) >= 4
    assert [path.name for path in files if secret in path.read_text()] == []


# The report


def test_a_handful_of_requests_makes_no_empty_plot(passed: RunDir) -> None:
    pytest.importorskip("matplotlib")
    place = passed.node(0).bench / "00-chat"
    runs.requests(place / "requests.jsonl", 1)
    page = html.write(outcome.read(passed)).read_text()
    assert not re.search("latenc(y|ies) of", page) and "install, load" in page


def test_the_report_needs_nothing_and_hides_nothing(failed: RunDir) -> None:
    pytest.importorskip("matplotlib")
    settle(failed)
    page = (failed.path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', ""))
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "E &lt;boom&gt; lost" in page and "<boom>" not in page
    assert "ready &lt;b&gt;&amp;amp; up" in page and "first error: node 1 server" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r"#0102[0-9a-f]{2}", page)


def test_a_huge_log_is_shown_by_its_start_first_error_and_end(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(
        b"begin\n" + b"x" * 3_000_000 + b"\nERROR here\n" + b"y" * 2_000_000 + b"\nlast\n"
    )
    assert logs.first_error(log) == 6 + 3_000_000 + 1
    found = dict(logs.parts(log, 8000))
    assert list(found) == ["its start", "around its first error", "its end"]
    assert found["its start"].startswith("begin") and found["its end"].endswith("last\n")
    assert "ERROR here" in found["around its first error"]
    assert sum(map(len, found.values())) <= 8000


def test_a_secret_in_a_plan_or_log_is_not_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plan = runs.plan_of()
    node = plan.nodes[0]
    process = replace(node.processes[0], env={"HF_TOKEN": "opensesame123"})
    plan = replace(plan, nodes=(replace(node, processes=(process,)), *plan.nodes[1:]))
    run_dir = runs.make(tmp_path / "run", plan)
    (run_dir.node(0).path / "server.log").write_text("--api-key sesame12345 x\n")
    page = html.write(outcome.read(run_dir)).read_text()
    assert "opensesame123" not in page and "sesame12345" not in page


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)")
def test_a_browser_opens_the_report_without_an_error(failed: RunDir, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = html.write(outcome.read(failed))
    probe = tmp_path / "probe.html"
    search = (
        "const f=document.getElementById('search');f.value='ready';"
        "f.dispatchEvent(new Event('input'));"
        "setTimeout(()=>{document.title='found '+document.getElementById('found').textContent+"
        "' marks '+document.querySelectorAll('mark').length},400);"
    )
    text = re.sub(r"<meta http-equiv.*?>", "", page.read_text())
    probe.write_text(text.replace("</body>", f"<script>{search}</script></body>"))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-quic", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000", "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "<title>found 2 found marks 2</title>" in done.stdout, done.stderr[-2000:]


# Gates


def entry(**more: object) -> BenchmarkPlan:
    plan = runs.plan_of().benchmarks[0]
    fields = {"baseline": 1000.0, "repeat": 1, "confirm": 2, **more}
    changed = replace(plan.benchmark, **fields)  # type: ignore[arg-type]
    return replace(
        plan, benchmark=changed, gates=(gates.parse("output_throughput >= 0.97 * baseline"),),
        skip_gates="",
    )  # fmt: skip


def measured(*values: float) -> list[Measurement]:
    return [Measurement({"output_throughput": v}, {"ok": 5, "asked": 5}) for v in values]


def test_a_miss_is_confirmed_before_it_counts() -> None:
    doubt = judge(entry(), measured(900), 0.0, 1.0, "x")
    assert to_confirm(entry(), doubt) and not to_confirm(entry(confirm=0), doubt)
    held = judge(entry(), measured(900, 1000, 990), 0.0, 1.0, "x")
    assert held.status == "pass" and held.metrics["output_throughput"] == 990
    assert "median of 3 measurements" in held.note and "spread 10.1 %" in held.note
    missed = judge(entry(), measured(900, 905, 1000), 0.0, 1.0, "x")
    assert missed.status == "fail" and missed.fault == "performance" and missed.note


def test_only_a_believed_performance_miss_is_confirmed() -> None:
    assert not to_confirm(entry(), judge(entry(), measured(1000), 0.0, 1.0, "x"))
    broken = judge(entry(), [Measurement({"ttft_p99_ms": 1.0}, {})], 0.0, 1.0, "x")
    assert broken.status == "fail" and not to_confirm(entry(), broken)
    scored = entry(case_type="accuracy")
    assert not to_confirm(scored, judge(scored, measured(900), 0.0, 1.0, "x"))


def test_a_score_has_an_interval_that_can_be_gated() -> None:
    rules = (gates.parse("accuracy >= 92"), gates.parse("accuracy_high >= 92"))
    scored = replace(entry(case_type="accuracy"), gates=rules)
    result = judge(scored, [Measurement({"accuracy": 91.0}, {"ok": 200})], 0.0, 1.0, "x")
    assert [gate.passed for gate in result.gates] == [False, True]
    assert "95 % interval 86.2" in result.reason and "may be chance" in result.reason


def left_by_aisbench(place: Path) -> int:
    """What a measurement with AISBench leaves; how many requests it sent."""
    work = place / "out"
    shutil.copytree(SAMPLES / "perf-good", work)
    [details] = work.rglob("gsm8k_details.jsonl")
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    databases = details.parent / "db_data"
    databases.mkdir()
    store = sqlite3.connect(databases / rows[0]["db_name"])
    store.execute("CREATE TABLE numpy_store (id INTEGER PRIMARY KEY, arr_blob BLOB)")
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\n"
    for row in rows:  # seconds since the machine's start, as AISBench takes them
        sent = 98_780.0 + 0.1 * row["id"]
        blob = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
        blob += struct.pack("<3d", sent, sent + 0.5, sent + 2.0)
        number = row["time_points"]["__db_ref__"]
        store.execute("INSERT INTO numpy_store VALUES (?, ?)", (number, blob))
    store.commit()
    store.close()
    asked = Benchmark("x", "performance", max_out_len=16)
    found = results.read(
        work, "vllm-api-stream-chat", "gsm8k", asked, len(rows), stream=True, size=len(rows)
    )
    results.write_requests(place / "requests.jsonl", found.rows)
    return len(rows)


def test_each_request_of_aisbench_is_plotted_once_on_one_clock(passed: RunDir) -> None:
    place = passed.node(0).bench / "00-chat"
    sent = left_by_aisbench(place)
    found = samples(place)
    assert len(found) == sent == 16 and all(sample.ok for sample in found)
    assert [round(s.begun, 3) for s in found] == [round(0.1 * i, 3) for i in range(16)]
    assert {(s.ttft, s.e2el, s.tpot) for s in found} == {(0.5, 2.0, 0.1)}
    pytest.importorskip("matplotlib")
    page = html.write(outcome.read(passed)).read_text()
    assert "latencies of 16 requests by percentile" in page


def test_requests_of_several_measurements_are_said_to_be(passed: RunDir) -> None:
    pytest.importorskip("matplotlib")
    place = passed.node(0).bench / "00-chat"
    (place / "requests.jsonl").unlink()
    for number in (1, 2):
        (place / f"run-{number}").mkdir()
        left_by_aisbench(place / f"run-{number}")
    found = samples(place)
    assert len(found) == 32 and max(s.begun for s in found) < 2
    plots = list(html.request_plots("chat", found, 2))
    assert "latencies of 32 requests of 2 measurements" in plots[0]


@pytest.mark.parametrize(
    "odd",
    ["{to", "null", "[1]", "[" * 9000, '{"begun": NaN}', '{"begun": "soon"}', '{"e2el": 1e999}',
     '{"output_tokens": "x"}', '{"ttft": [1]}', '{"begun": true}', '{"begun": -1}'],
)  # fmt: skip
def test_a_request_that_cannot_be_read_is_not_plotted(tmp_path: Path, odd: str) -> None:
    runs.requests(tmp_path / "requests.jsonl", 3)
    with (tmp_path / "requests.jsonl").open("a") as out:
        out.write(odd + "\n")
    assert len(samples(tmp_path)) == 3


def test_times_that_were_not_seen_are_not_plotted_as_none(tmp_path: Path) -> None:
    asked = Benchmark("x", "performance", max_out_len=16)
    found = results.read(
        SAMPLES / "perf-good", "vllm-api-stream-chat", "gsm8k", asked, 16, stream=True, size=16
    )
    results.write_requests(tmp_path / "requests.jsonl", found.rows)
    untimed = samples(tmp_path)
    assert {(s.ttft, s.e2el, s.tpot) for s in untimed} == {(None, None, None)}
    assert list(html.request_plots("chat", untimed)) == []


def test_a_mistake_in_the_report_changes_no_exit_code(
    passed: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(html, "write", write)
    verdict, code, said = settle(passed)
    assert (verdict.verdict, code) == ("pass", 0)
    assert len(said) == 1 and "report.html was not made: KeyError" in said[0]


def test_what_a_report_needs_is_loaded_while_the_fleet_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, end = threading.Event(), threading.Event()
    monkeypatch.setattr(closing, "WARM_AFTER", 0.0)
    monkeypatch.setattr(html, "warm", lambda: (began.set(), end.wait(5)))
    warmer = closing.Warmer()
    warmer(Event(1.0, "run", 0, "preflight", "phase", {}))
    assert not began.wait(0.1)
    for _ in range(2):
        warmer(Event(2.0, "run", 0, "load", "started", {}))
    assert began.wait(5)
    threading.Timer(0.1, end.set).start()
    warmer.close()
    assert end.is_set()


def test_two_nodes_that_start_at_once_load_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, together = [], threading.Barrier(2)

    class Slow(threading.Timer):
        def start(self) -> None:
            begun.append(self)
            time.sleep(0.1)

    monkeypatch.setattr(threading, "Timer", Slow)
    warmer = closing.Warmer()

    def read() -> None:
        together.wait(5)
        warmer(Event(2.0, "run", 0, "load", "started", {}))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(5)
    assert len(begun) == 1


def test_a_run_that_starts_nothing_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "warm", lambda: pytest.fail("loaded"))
    warmer = closing.Warmer()
    warmer(Event(2.0, "run", 0, "load", "started", {}))
    warmer.close()
    warmer.close()
    closing.Warmer().close()


def test_loading_ahead_finds_the_template(passed: RunDir) -> None:
    pytest.importorskip("matplotlib")
    html.warm()
    assert "<svg" in html.write(outcome.read(passed)).read_text()
