"""vllm-bench: ``vllm bench serve``, vLLM's own load generator, in the engine's own environment.

Enters: a benchmark and an endpoint. Leaves: a measurement; the client's log, its result and
``requests.jsonl`` in the benchmark's directory. Touches: one process group on the leader, which
loads the endpoint.

Prompts are random tokens of one length, so a case's numbers count only where its ``dataset_conf``
says ``random``. Everything is computed from the single requests, by the rules of the other drivers:
the client's own means leave out what failed.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from steps.bench_drivers import (
    Job,
    Measurement,
    Sample,
    generation,
    hub,
    smoke,
    write_requests,
)
from steps.bench_drivers.aisbench import material
from steps.bench_drivers.aisbench.pace import Pace
from steps.bench_drivers.client_program import blame, judge, killed, run_tool
from steps.bench_drivers.stream import clean
from steps.core import settings
from steps.core.case.case import Benchmark
from steps.core.case.numbers import Refused, dumps, finite, loads, whole
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.plan.plan import TOOL, BenchmarkPlan, Process
from steps.core.record import evidence
from steps.core.record.records import Check

PROCESS, CLIENT = "bench", "vllm bench serve"
RESULT = "vllm-bench.json"
#: Requests where the case does not say how many, and vLLM's own length of a prompt.
PROMPTS, INPUT = 100, 1024
TEXT_KEPT, BLANK = 400, "(blank)"
_BAR = re.compile(r"(\d{1,9})/(\d{1,9}) \[")


def problems(run: NodeRun, entry: BenchmarkPlan) -> Iterator[str]:
    """What will keep this benchmark from being measured."""
    if entry.benchmark.case_type != "performance":
        yield f"vllm-bench measures performance, not {entry.benchmark.case_type}"
    program, environment = _engine(run)
    if shutil.which(program, path=environment.get("PATH")) is None:
        yield f"{program}, whose `bench serve` makes the load, is not on the leader's PATH"
    try:
        material.found_tokenizer(run.plan, entry.benchmark, hub.Hub.of(settings.read()))
    except hub.NotHere as error:
        yield f"vllm-bench needs the tokenizer: {error}"


def measure(run: NodeRun, job: Job) -> Measurement:
    """Run the client once.

    Raises:
        RunEnded: the run is over.
        StepFailed: the budget is used up, or a signal ended the client.
    """
    benchmark, place = job.entry.benchmark, job.directory.resolve()
    log, program = place / f"{PROCESS}.log", _engine(run)[0]
    try:
        tokenizer = material.found_tokenizer(run.plan, benchmark, hub.Hub.of(settings.read()))
    except hub.NotHere as error:
        return Measurement(error=str(error), fault="infra")
    asked = benchmark.num_prompts or PROMPTS
    bar = partial(counted, asked=asked, width=benchmark.batch_size)
    pace = Pace(run, benchmark, asked, log, CLIENT, bar)
    try:
        status = run_tool(
            run,
            PROCESS,
            (program, "bench", "serve", *words(job, tokenizer, place)),
            place,
            env=_environment(run, job),
            what=lambda: f"{benchmark.name}: {CLIENT}, whose log ends: {evidence.last_line(log)}",
            blame=lambda: blame(run, job, PROCESS),
            tell=pace.tell,
        )
    except OSError as error:
        return Measurement(error=f"{program} cannot be started: {error}", fault="infra")
    if status.signal:
        raise StepFailed(killed(run, status, log, PROCESS, CLIENT))
    found = read(place / RESULT, benchmark, bool(generation(benchmark)["ignore_eos"]))
    if found is None:
        left = Check("result of the client", "fail", f"{RESULT} is not there")
        return judge(run, job, Measurement(checks=(left,)), status, log, CLIENT)
    measured, samples = found
    write_requests(place / "requests.jsonl", samples)
    if status.code:
        ended = Check("exit code of the client", "fail", f"{CLIENT} {status}")
        measured = replace(measured, checks=(*measured.checks, ended))
    return judge(run, job, measured, status, log, CLIENT)


def counted(text: str, asked: int, width: int) -> tuple[int, int, int]:
    """Requests that were sent, that failed, that ended, by the last of its bars; zeros before it.

    It does not tell what it has sent: all that may be in flight is taken to be.
    """
    done = [int(bar[1]) for bar in _BAR.finditer(text) if int(bar[2]) == asked]
    return (min(done[-1] + width, asked), 0, done[-1]) if done else (0, 0, 0)


def words(job: Job, tokenizer: Path, place: Path) -> Iterator[str]:
    """The options of the command."""
    benchmark, asked = job.entry.benchmark, generation(job.entry.benchmark)
    url = job.endpoint.url
    options = {
        "--backend": "openai-chat",
        "--endpoint": "/v1/chat/completions",
        "--base-url": url,
        "--model": job.endpoint.model,
        "--tokenizer": str(tokenizer),
        "--dataset-name": "random",
        "--random-input-len": str(benchmark.input_len or INPUT),
        "--random-output-len": str(benchmark.max_out_len),
        "--num-prompts": str(benchmark.num_prompts or PROMPTS),
        "--max-concurrency": str(benchmark.batch_size),
        "--seed": str(job.prompts),
        "--temperature": f"{asked.pop('temperature'):g}",
        "--result-dir": str(place),
        "--result-filename": RESULT,
    }
    if benchmark.request_rate:
        options["--request-rate"] = f"{benchmark.request_rate:g}"
    if benchmark.num_warmups:
        options["--num-warmups"] = str(benchmark.num_warmups)
    exact = asked.pop("ignore_eos")
    if asked:
        options["--extra-body"] = dumps(asked)
    for name, value in options.items():
        yield from (name, value)
    yield from ("--save-result", "--save-detailed")
    flags = {
        "--ignore-eos": exact,
        # No client here looks at certificates of servers that a case starts.
        "--insecure": url.startswith("https:"),
        "--trust-remote-code": benchmark.trust_remote_code,
    }
    yield from (flag for flag, wanted in flags.items() if wanted)


def _server(run: NodeRun) -> Process:
    return next(p for p in run.me.processes if p.kind == "server")


def _engine(run: NodeRun) -> tuple[str, dict[str, str]]:
    """The program of the leader's engine, and the environment it is started with."""
    server = _server(run)
    return server.argv[0], run.supervisor.environment(replace(server, kind=TOOL))


def _environment(run: NodeRun, job: Job) -> dict[str, str]:
    """The engine's, and the key, which is in no command line where others could read it."""
    server, (_, inherited) = _server(run), _engine(run)
    names = ("PATH", *server.env, *server.paths)
    found = {name: inherited[name] for name in names if name in inherited}
    key = {"OPENAI_API_KEY": job.endpoint.api_key} if job.endpoint.api_key else {}
    return {**found, **key, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def read(
    path: Path, benchmark: Benchmark, exact: bool
) -> tuple[Measurement, Sequence[Sample]] | None:
    """What the client wrote; None when it wrote nothing that can be read.

    Args:
        exact: every answer must have just as many tokens as were asked for.
    """
    try:
        data = loads(path.read_text(encoding="utf-8"))
        samples = list(_samples(data))
        seconds = finite(data["duration"], least=0)
    except OSError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        # A client of that age, or a result that was cut off.
        check = Check("result of the client", "fail", f"{path.name}: {error!r:.200}")
        return Measurement(checks=(check,), fault="infra"), ()
    measured = smoke.summarise(samples, seconds, benchmark.max_out_len, exact)
    asked = benchmark.num_prompts or PROMPTS
    sent = Check("requests sent", "pass", str(asked))
    if len(samples) != asked:
        sent = Check("requests sent", "fail", f"found {len(samples)}, expected {asked}")
    requests = {**measured.requests, "asked": asked}
    return replace(measured, requests=requests, checks=(*measured.checks, sent)), samples


def _samples(data: Mapping[str, Any]) -> Iterator[Sample]:
    """The requests of a detailed result.

    Raises:
        Refused, KeyError, TypeError: it is none, or a number in it is odd.
    """
    count = len(data["ttfts"])
    names = ("ttfts", "itls", "input_lens", "output_lens", "errors", "generated_texts")
    odd = [name for name in names if len(data[name]) != count]
    if odd:
        raise Refused(f"{odd[0]} has {len(data[odd[0]])} entries, ttfts {count}")
    begun = [finite(at) for at in data.get("start_times") or [0.0] * count]
    first = min(begun, default=0.0)
    for index in range(count):
        ttft = finite(data["ttfts"][index], least=0)
        gaps = [finite(gap, least=0) for gap in data["itls"][index]]
        said = str(data["errors"][index] or "").strip().splitlines()
        tokens = whole(data["output_lens"][index])
        text = clean(str(data["generated_texts"][index]))[:TEXT_KEPT]
        yield Sample(
            index,
            begun=begun[index] - first,
            ttft=ttft,
            e2el=ttft + math.fsum(gaps),
            itl=gaps,
            input_tokens=whole(data["input_lens"][index]),
            output_tokens=tokens,
            # Random words may be answered by blanks; their tokens were counted all the same.
            text=text if text.strip() or not tokens else BLANK,
            error=clean(said[-1])[:TEXT_KEPT] if said else "",
        )
