"""AISBench as a process: every way it can end, and nothing of it left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from steps import bench as bench_step
from steps.bench_drivers import aisbench
from steps.core.node.noderun import RunEnded, StepFailed
from tests.core.waiting import alive

from .conftest import Bench


def measure(bench: Bench, words: str, name: str = "perf"):
    bench.run.supervisor._inherited["FAKE_AISBENCH"] = words
    return aisbench.measure(bench.run, bench.job(name))


def failed(found) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if check.status == "fail"}


def row(bench: Bench) -> dict:
    [found] = [p for p in json.loads(bench.run.dir.processes.read_text()) if p["name"] == "bench"]
    return found


def assert_gone(bench: Bench) -> None:
    assert row(bench)["exit"] is not None
    children = bench.place / "children"
    pids = [int(line) for line in children.read_text().split()] if children.exists() else []
    until = time.monotonic() + 30
    for pid in [*pids, row(bench)["pid"]]:
        while alive(pid):
            assert time.monotonic() < until, f"{pid} lives"
            time.sleep(0.01)


def test_a_good_run(bench):
    found = measure(bench, "leave=perf-good")
    assert (failed(found), found.error) == ({}, "")
    assert found.metrics["output_throughput"] == 557.0973
    assert len((bench.place / "requests.jsonl").read_text().splitlines()) == 16
    entry = row(bench)
    assert entry["log"] == "bench/00-perf/bench.log"
    assert entry["exit"]["code"] == 0 and entry["exit"]["expected"]
    assert "begun" in (bench.place / "bench.log").read_text()


def test_how_it_is_called(bench):
    bench.run.supervisor._inherited |= {"NO_PROXY": "before", "http_proxy": "http://p:1"}
    measure(bench, "leave=perf-good")
    seen = json.loads((bench.place / "seen.json").read_text())
    place = bench.place.resolve()
    assert seen["argv"][1:] == [
        str(place / "case.json"), "--mode", "perf", "--num-prompts", "16",
        "--work-dir", str(place / "out"), "--debug",
    ]  # fmt: skip
    assert seen["env"]["NO_PROXY"] == seen["env"]["no_proxy"]
    assert {"before", "127.0.0.1"} <= set(seen["env"]["NO_PROXY"].split(","))
    config = json.loads((place / "case.json").read_text())
    assert Path(config["datasets"][0]["path"], "test.jsonl").is_file()
    assert Path(config["models"][0]["path"], "tokenizer.json").is_file()


def test_accuracy_is_called_otherwise(bench):
    found = measure(bench, "leave=accuracy-good", "acc")
    assert (failed(found), found.metrics["accuracy"]) == ({}, 75.0)
    seen = json.loads((bench.place / "seen.json").read_text())
    assert seen["argv"][2:5] == ["--mode", "all", "--dump-eval-details"]


def test_exit_0_with_failed_requests_is_functional(bench):
    found = measure(bench, "leave=perf-failed")
    assert failed(found) == {"requests failed": "5, the first: Internal Server Error"}
    assert found.fault == "functional"


def test_exit_0_without_results_is_infra_while_the_endpoint_answers(bench):
    found = measure(bench, "say=nothing-to-do")
    assert found.fault == "infra"
    assert "nothing-to-do" in found.error and "ais_bench itself failed" in found.error


def test_exit_1_without_results_is_infra_while_the_endpoint_answers(bench):
    found = measure(bench, "say=AISBenchError:bad exit=1")
    assert found.fault == "infra" and "exited with code 1" in found.error


def test_exit_1_without_results_is_functional_when_the_endpoint_does_not_answer(bench, endpoint):
    endpoint.answer = (500, b"broken")
    found = measure(bench, "exit=1")
    assert found.fault == "functional"
    assert "the endpoint does not answer: HTTP 500: broken" in found.error


def test_exit_1_with_all_results_is_not_green(bench):
    found = measure(bench, "leave=perf-good exit=1")
    assert failed(found) == {"ais_bench ended well": "exit code 1"}
    assert found.fault == "infra"


def test_all_requests_failed_blames_the_requests(bench):
    found = measure(bench, "leave=perf-all-failed exit=1")
    assert found.fault == "functional" and not found.error
    assert failed(found)["requests failed"].startswith("16, ")


def test_a_signal_ends_the_run_as_infra_and_names_it(bench):
    with pytest.raises(StepFailed) as caught:
        measure(bench, "child child=away kill=9")
    cause = caught.value.cause
    assert (cause.verdict, cause.process, cause.signal) == ("infra", "bench", "SIGKILL")
    assert "ais_bench was killed by signal 9" in cause.reason
    assert cause.log == "node-0/bench/00-perf/bench.log"
    assert bench.run.cause is None and not bench.run.ended.is_set()
    assert_gone(bench)


def test_killed_from_outside_by_the_pid_in_the_process_table(bench):
    def kill() -> None:
        while not (bench.place / "children").exists():
            time.sleep(0.01)
        os.kill(row(bench)["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(StepFailed, match="killed by signal 9"):
        measure(bench, "child hang")
    thread.join()
    assert_gone(bench)


def test_a_killed_client_is_in_the_benchmarks_result_too(bench):
    bench.run.supervisor._inherited["FAKE_AISBENCH"] = "kill=9"
    with pytest.raises(StepFailed):
        bench_step.run(bench.run)
    [result] = bench.run.benchmarks
    assert (result.name, result.status, result.fault) == ("perf", "error", "infra")


def test_a_hanging_client_meets_the_deadline(bench):
    bench.budget(0.5)
    with pytest.raises(StepFailed) as caught:
        measure(bench, "child child=away hang")
    cause = caught.value.cause
    assert (cause.verdict, cause.kind, cause.process) == ("hang", "deadline", "bench")
    assert "ais_bench: hanging" in cause.reason
    assert_gone(bench)


def test_counts_that_stand_still_are_a_stall_though_the_log_grows(bench):
    bench.budget(60, stall=1.0)
    with pytest.raises(StepFailed) as caught:
        measure(bench, "count=3 chatter")
    assert caught.value.cause.kind == "stall"
    assert "POST=16" in caught.value.cause.reason
    assert_gone(bench)


def test_counts_that_rise_are_progress(bench):
    bench.budget(60, stall=1.0)
    assert failed(measure(bench, "count=20 leave=perf-good")) == {}


def test_a_hanging_endpoint_is_blamed_rather_than_the_client(bench, endpoint):
    endpoint.answer = (503, b"")
    bench.budget(0.5)
    with pytest.raises(StepFailed) as caught:
        measure(bench, "hang")
    assert caught.value.cause.process == "server"
    assert_gone(bench)


def test_the_end_of_the_run_ends_it(bench):
    timer = threading.Timer(0.4, bench.run.ended.set)
    timer.start()
    with pytest.raises(RunEnded):
        measure(bench, "child child=away hang")
    timer.join()
    assert_gone(bench)


def test_children_that_outlive_a_good_run_are_ended(bench):
    found = measure(bench, "child child=away leave=perf-good")
    assert failed(found) == {}
    assert_gone(bench)


def test_a_program_that_is_not_there(bench, tmp_path):
    (tmp_path / "ais_bench").unlink()
    found = measure(bench, "")
    assert found.fault == "infra" and "cannot be started" in found.error
    [entry, _] = bench.run.plan.benchmarks
    assert "is not on the leader" in next(iter(aisbench.problems(bench.run, entry)))


def test_a_rehearsal_passes_the_whole_step_with_baselines_skipped(bench):
    bench.run.supervisor._inherited["FAKE_AISBENCH"] = "leave=perf-good"
    bench.run.plan = bench.run.plan.__class__(
        **{**vars(bench.run.plan), "benchmarks": bench.run.plan.benchmarks[:1]}
    )
    bench_step.run(bench.run)
    [result] = bench.run.benchmarks
    assert result.status == "pass", result.reason
    assert [(gate.passed, gate.reason) for gate in result.gates] == [(None, "rehearsed")]
