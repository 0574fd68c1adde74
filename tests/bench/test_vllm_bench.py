"""vllm-bench: what it asks of ``vllm bench serve``, and what it believes of what that leaves."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps.bench_drivers import vllm_bench
from steps.core.case.case import Benchmark
from steps.core.node.noderun import StepFailed
from steps.core.plan.drivers import DRIVERS
from steps.core.plan.plan import Endpoint
from tests.bench.conftest import Bench

#: Behaves as vLLM 0.32's does: refuses unknown options, asks once a prompt, writes one JSON file.
STAND_IN = """\
    #!{python}
    import argparse, json, os, signal, sys, time, urllib.error, urllib.request

    assert sys.argv[1:3] == ["bench", "serve"], sys.argv
    knobs = dict(word.partition("=")[::2] for word in os.environ.get("FAKE_VLLM", "").split())
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("backend", "endpoint", "base-url", "model", "tokenizer", "dataset-name",
                 "result-dir", "result-filename", "extra-body"):
        parser.add_argument("--" + name)
    for name in ("random-input-len", "random-output-len", "num-prompts", "max-concurrency", "seed",
                 "num-warmups"):
        parser.add_argument("--" + name, type=int)
    for name in ("temperature", "request-rate"):
        parser.add_argument("--" + name, type=float)
    for name in ("ignore-eos", "save-result", "save-detailed", "insecure", "trust-remote-code"):
        parser.add_argument("--" + name, action="store_true")
    args = parser.parse_args(sys.argv[3:])
    with open("seen.json", "w") as out:
        json.dump({{"argv": sys.argv, "key": os.environ.get("OPENAI_API_KEY", "")}}, out)
    if "kill" in knobs:
        os.kill(os.getpid(), signal.SIGKILL)
    count = int(knobs.get("count", args.num_prompts))
    errors = []
    for number in range(count):
        body = json.dumps({{"model": args.model}}).encode()
        head = {{"Authorization": "Bearer " + os.environ.get("OPENAI_API_KEY", "")}}
        try:
            url = args.base_url + args.endpoint
            urllib.request.urlopen(urllib.request.Request(url, body, head))
            errors.append("")
        except urllib.error.HTTPError as error:
            errors.append("Traceback\\n" + error.reason)
    errors = ["" if number >= int(knobs.get("fail", 0)) and not e else e or "ClientError: gone"
              for number, e in enumerate(errors)]
    length = args.random_output_len - int(knobs.get("short", 0))
    good = [not error for error in errors]
    result = {{
        "duration": 2.0, "completed": sum(good), "failed": count - sum(good),
        "output_throughput": 1e9, "mean_ttft_ms": 1.0,
        "input_lens": [args.random_input_len] * count,
        "output_lens": [length if ok else 0 for ok in good],
        "ttfts": [0.1 if ok else 0.0 for ok in good],
        "itls": [[0.01] * (length - 1) if ok else [] for ok in good],
        "start_times": [1000.0 + number / 10 for number in range(count)],
        "generated_texts": [knobs.get("says", "words") if ok else "" for ok in good],
        "errors": errors,
    }}
    if "lacks" in knobs:
        del result[knobs["lacks"]]
    if args.save_result and "nothing" not in knobs:
        with open(os.path.join(args.result_dir, args.result_filename), "w") as out:
            json.dump(result, out)
    sys.exit(int(knobs.get("exit", 0)))
"""

Run = Callable[..., Any]


@pytest.fixture
def measure(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Measure with the stand-in that these words shape."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "vllm"
    program.write_text(textwrap.dedent(STAND_IN).format(python=sys.executable))
    program.chmod(0o755)
    (tmp_path / "tokenizer").mkdir()
    inherited = bench.run.supervisor._inherited
    inherited["PATH"] = f"{folder}:{os.environ['PATH']}"

    def run(words: str = "", **more: Any) -> Any:
        inherited["FAKE_VLLM"] = words
        server = bench.run.me.processes[0]
        job = bench.job("perf")
        model = {"model_path": str(tmp_path / "tokenizer"), "num_prompts": 16, "max_out_len": 16}
        asked = replace(job.entry.benchmark, **{**model, **more})
        job = replace(job, entry=replace(job.entry, benchmark=asked))
        plan = bench.run.plan
        paths = {"PATH": (str(folder),)}
        node = replace(plan.nodes[0], processes=(replace(server, paths=paths),))
        bench.run.plan = replace(plan, nodes=(node,))
        bench.run.me = node
        bench.budget(60)
        return vllm_bench.measure(bench.run, job)

    return run


def test_numbers_come_from_the_requests_and_every_one_is_kept(bench: Bench, measure: Run) -> None:
    found = measure()
    assert not found.error and all(check.status == "pass" for check in found.checks), found
    assert found.requests["ok"] == found.requests["asked"] == 16
    assert found.metrics["output_throughput"] == 16 * 16 / 2.0  # not what the client says
    assert found.metrics["ttft_p99_ms"] == 100 and found.metrics["tpot_mean_ms"] == 10
    rows = [json.loads(line) for line in (bench.place / "requests.jsonl").open()]
    assert len(rows) == 16 and rows[3]["begun"] == pytest.approx(0.3)


def test_blanks_that_were_counted_are_an_answer_and_none_is_not(measure: Run) -> None:
    assert measure("says=").requests["ok"] == 16
    found = measure("says= short=16")
    assert found.requests["empty"] == 16 and found.fault == "functional"


@pytest.mark.parametrize(
    ("words", "check", "fault"),
    [
        ("fail=3", "requests failed", "functional"),
        ("short=2", "answers truncated", "functional"),
        ("count=9", "requests sent", "infra"),
        ("exit=1", "exit code of the client", "infra"),
        ("nothing", "result of the client", "infra"),
        ("lacks=errors", "result of the client", "infra"),
    ],
)
def test_what_is_not_whole_is_never_green(measure: Run, words: str, check: str, fault: str) -> None:
    found = measure(words)
    assert [one.name for one in found.checks if one.status == "fail"] == [check]
    assert found.fault == fault
    if words == "fail=3":
        assert found.requests["failed"] == 3 and found.metrics["success_ratio"] == 13 / 16


def test_an_endpoint_that_refuses_is_the_product_s_fault(
    measure: Run, endpoint: http.server.ThreadingHTTPServer
) -> None:
    endpoint.answer = (503, b"{}")  # type: ignore[attr-defined]
    found = measure()
    assert found.fault == "functional" and found.requests["failed"] == 16
    assert "Service Unavailable" in found.checks[0].detail


def test_a_client_that_a_signal_ends_is_named(measure: Run) -> None:
    with pytest.raises(StepFailed) as caught:
        measure("kill")
    assert "vllm bench serve was killed" in caught.value.cause.reason.replace("ended", "was killed")


def test_the_key_is_in_no_command_line_and_the_case_s_own_load_is_asked(
    bench: Bench, measure: Run
) -> None:
    plan = bench.run.plan
    bench.run.plan = replace(plan, endpoint=replace(plan.endpoint, api_key="sk-secret-1"))
    sampling = {"temperature": 0.5, "top_p": 0.9, "ignore_eos": False}
    more = {"request_rate": 7.5, "num_warmups": 2, "input_len": 33, "sampling": sampling}
    measure(batch_size=5, **more)
    seen = json.loads((bench.place / "seen.json").read_text())
    argv = seen["argv"]
    assert seen["key"] == "sk-secret-1" and "sk-secret-1" not in " ".join(argv)
    asked = dict(itertools.pairwise(argv))
    assert asked["--max-concurrency"] == "5" and asked["--request-rate"] == "7.5"
    assert asked["--random-input-len"] == "33" and asked["--num-warmups"] == "2"
    assert asked["--temperature"] == "0.5" and json.loads(asked["--extra-body"]) == {"top_p": 0.9}
    assert "--ignore-eos" not in argv and "--insecure" not in argv


def test_other_prompts_and_https(bench: Bench, tmp_path: Path) -> None:
    job = replace(bench.job("perf"), prompts=3, endpoint=Endpoint("https://h:1", "m", "server"))
    argv = list(vllm_bench.words(job, tmp_path, tmp_path))
    assert "--insecure" in argv and argv[argv.index("--seed") + 1] == "3"


def test_problems_are_known_before_anything_starts(bench: Bench) -> None:
    server = replace(bench.run.me.processes[0], argv=("/opt/none/vllm", "serve", "m"))
    bench.run.me = replace(bench.run.me, processes=(server,))
    perf, acc = bench.run.plan.benchmarks
    told = " ".join(vllm_bench.problems(bench.run, perf))
    assert "not on the leader's PATH" in told and "needs the tokenizer" in told
    assert "measures performance" in " ".join(vllm_bench.problems(bench.run, acc))


def test_its_bar_tells_how_it_goes_on() -> None:
    bar = " 50%|█████     | 8/16 [00:53<00:03,  3.77s/it]"
    assert vllm_bench.counted(f"INFO 3/4 [x\r{bar}", 16, 4) == (12, 0, 8)
    assert vllm_bench.counted(bar.replace("8/16", "15/16"), 16, 4) == (16, 0, 15)
    assert vllm_bench.counted("INFO loading 1/2 [", 16, 4) == (0, 0, 0)


def test_only_random_prompts_are_held_against_gates() -> None:
    driver, chat = DRIVERS["vllm-bench"], Benchmark("b", "performance", dataset_conf="gsm8k/x")
    assert "random prompts" in driver.skips_gates(chat, False)
    assert driver.skips_gates(replace(chat, dataset_conf="random"), False) == ""
