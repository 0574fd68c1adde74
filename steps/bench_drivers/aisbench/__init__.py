"""aisbench: AISBench, run as a program in an environment of its own.

Enters: a benchmark and an endpoint. Leaves: a measurement; AISBench's own
files and log, and ``requests.jsonl``, in the benchmark's directory. Touches:
one process group on the leader, which loads the endpoint.

Its exit code proves nothing, so everything it leaves is checked
(``results``); what it asks is in ``catalogue``, how it is asked in ``config``,
what it reads in ``material``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from steps.bench_drivers import Job, Measurement, hub
from steps.bench_drivers.aisbench import catalogue, config, material, package, results
from steps.bench_drivers.aisbench.material import Material
from steps.bench_drivers.aisbench.pace import Pace
from steps.bench_drivers.aisbench.package import Packaged
from steps.bench_drivers.client_program import blame, judge, killed, run_tool
from steps.core import settings
from steps.core.case.case import Benchmark
from steps.core.case.numbers import dumps
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.plan.cluster import AIS_BENCH
from steps.core.plan.plan import TOOL, BenchmarkPlan, Process
from steps.core.record import evidence
from steps.core.vllm import access

PROCESS = "bench"
#: AISBench prints its counts every other second, moved or not; the rates beside them sink to 0.
_RATES = re.compile(r"\([0-9.]+/s\)")


def problems(run: NodeRun, entry: BenchmarkPlan) -> Iterator[str]:
    """What will keep this benchmark from being measured."""
    benchmark = entry.benchmark
    program = AIS_BENCH.of(run.plan.cluster)
    if shutil.which(program, path=_inherited(run).get("PATH")) is None:
        yield (
            f"{program} is not on the leader; install ais-bench-benchmark in an environment of its "
            "own and name its program in MULTINODE_AIS_BENCH, or use --bench smoke"
        )
    try:
        catalogue.request(benchmark.request_conf)
    except KeyError as error:
        yield error.args[0]
    try:
        data = _data_set(run, benchmark)
    except KeyError as error:
        yield error.args[0]
        return
    if benchmark.case_type == "performance" and len(data.abbrs) > 1:
        yield f"{data.name} has {len(data.abbrs)} data sets; a performance benchmark takes one"
    where = hub.Hub.of(settings.read())
    if not (run.plan.rehearsed or where.download):
        try:
            material.find(run.plan, benchmark, data, where)
        except hub.NotHere as error:
            yield str(error)


def measure(run: NodeRun, job: Job) -> Measurement:
    """Run AISBench once.

    Raises:
        RunEnded: the run is over.
        StepFailed: the budget is used up, or a signal ended AISBench.
    """
    benchmark = job.entry.benchmark
    place = job.directory.resolve()
    try:
        request = catalogue.request(benchmark.request_conf)
        data = _data_set(run, benchmark)
        read = _material(run, job, data, place)
    except KeyError as error:
        return Measurement(error=error.args[0], fault="config")
    except material.NotMadeUp as error:
        return Measurement(skipped=f"rehearsed: {error}")
    except hub.NotHere as error:
        return Measurement(error=str(error), fault="infra")
    plan = config.make(benchmark, job.endpoint, request, data, read.data, read.tokenizer)
    file, work = place / "case.json", place / "out"
    file.write_text(dumps(plan, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    asked = min(filter(None, (benchmark.num_prompts, read.size)), default=0)
    program = AIS_BENCH.of(run.plan.cluster)
    log = place / f"{PROCESS}.log"
    pace = Pace(run, benchmark, asked, log)
    try:
        status = run_tool(
            run,
            PROCESS,
            tuple(config.command(program, file, work, benchmark, benchmark.num_prompts)),
            place,
            env=_environment(run),
            what=lambda: f"{benchmark.name}: ais_bench, whose log ends: {evidence.last_line(log)}",
            blame=lambda: blame(run, job, PROCESS),
            progress=lambda: _RATES.sub("", evidence.last_line(log)),
            tell=pace.tell,
        )
    except OSError as error:
        return Measurement(error=f"{program} cannot be started: {error}", fault="infra")
    if status.signal:
        raise StepFailed(killed(run, status, log, PROCESS, "ais_bench"))
    abbr, *others = data.abbrs
    sizes = {"asked": asked, "size": read.size}
    found = results.read(
        work, request.abbr, abbr, benchmark, **sizes, stream=request.stream, others=others
    )
    results.write_requests(place / "requests.jsonl", found.rows)
    measured = found.measurement
    if status.code:
        exited = results.exit_check(status.code)
        measured = replace(measured, checks=(*measured.checks, exited))
    return judge(run, job, measured, status, log, "ais_bench")


def _data_set(run: NodeRun, benchmark: Benchmark) -> catalogue.DataSet | Packaged:
    places = package.roots(AIS_BENCH.of(run.plan.cluster), _inherited(run))
    return catalogue.found(benchmark.dataset_conf, places)


def _material(run: NodeRun, job: Job, data: catalogue.DataSet | Packaged, place: Path) -> Material:
    benchmark = job.entry.benchmark
    if run.plan.rehearsed:
        found = material.made_up(benchmark, data, place)
    else:
        where = hub.Hub.of(settings.read())
        if where.download:
            _download(run, job, where, place)
        found = material.find(run.plan, benchmark, data, where)
    return material.absolute_images(found, place / "images") if data.images else found


def _download(run: NodeRun, job: Job, where: hub.Hub, place: Path) -> None:
    """Fetch what is absent; the next look finds out what still is."""
    benchmark = job.entry.benchmark
    wanted = [(hub.DATASET, [material.wanted_data(benchmark)])]
    if benchmark.case_type == "performance":
        wanted.append((hub.MODEL, material.wanted_models(run.plan, benchmark)))
    for kind, names in wanted:
        if any(_here(where, kind, name, run) for name in names) or names[0].startswith("/"):
            continue
        run_tool(
            run,
            "download",
            hub.download_command(run.plan.cluster.python, kind, names[0]),
            place,
            what=lambda name=names[0]: f"the download of {name}",  # type: ignore[misc]
        )


def _here(where: hub.Hub, kind: str, name: str, run: NodeRun) -> bool:
    try:
        where.find(kind, name, material.bases(run.plan))
    except hub.NotHere:
        return False
    return True


def _inherited(run: NodeRun) -> dict[str, str]:
    """The environment a tool of this node is started with."""
    return run.supervisor.environment(Process(PROCESS, TOOL, ()))


def _environment(run: NodeRun) -> dict[str, str]:
    """Nothing from the network; who issued the servers' certificates, where the case says it."""
    issuers = run.plan.issuers
    return {
        **({access.TRUST_VARIABLE: issuers} if issuers else {}),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
