"""AISBench's configuration for one benchmark, as JSON.

Enters: a benchmark, an endpoint, where data set and tokenizer are. Leaves:
the configuration and the command. Touches nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from steps.bench_drivers import generation
from steps.bench_drivers.aisbench.catalogue import DataSet, Request
from steps.bench_drivers.aisbench.package import Packaged
from steps.core.case.case import Benchmark
from steps.core.plan.plan import Endpoint

#: P95 is ours; eight statistics are the most AISBench takes.
STATISTICS = ("Average", "Min", "Max", "Median", "P75", "P90", "P95", "P99")
ATTEMPTS = 2


def make(
    benchmark: Benchmark,
    endpoint: Endpoint,
    request: Request,
    data: DataSet | Packaged,
    data_path: Path,
    tokenizer: Path | None,
) -> dict[str, Any]:
    """The whole configuration.

    Args:
        tokenizer: needed for performance; AISBench opens it before the first request.
    """
    where = urlsplit(endpoint.url)
    model = {
        **request.to_json(benchmark.no_pred),
        "path": str(tokenizer or ""),
        "model": endpoint.model,
        "request_rate": benchmark.request_rate,
        "use_timestamp": False,
        "retry": ATTEMPTS,
        "api_key": endpoint.api_key,
        "host_ip": where.hostname or "",
        "host_port": where.port or (443 if where.scheme == "https" else 80),
        "url": "",
        **({"enable_ssl": True} if where.scheme == "https" else {}),
        "max_out_len": benchmark.max_out_len,
        "batch_size": benchmark.batch_size,
        "trust_remote_code": benchmark.trust_remote_code,
        "generation_kwargs": generation(benchmark),
    }
    return {
        "models": [model],
        "datasets": data.entries(str(data_path)),
        "summarizer": _summarizer(benchmark.case_type),
    }


def command(
    program: str, config: Path, work: Path, benchmark: Benchmark, count: int | None
) -> list[str]:
    """The command line; ``--debug`` keeps it from drawing with curses into the log."""
    if benchmark.case_type == "performance":
        mode = ["--mode", "perf"]
    else:
        mode = ["--mode", "all", "--dump-eval-details"]
    prompts = ["--num-prompts", str(count)] if count else []
    if benchmark.num_warmups is not None:
        prompts += ["--num-warmups", str(benchmark.num_warmups)]
    return [program, str(config), *mode, *prompts, "--work-dir", str(work), "--debug"]


def _summarizer(case_type: str) -> dict[str, Any]:
    if case_type != "performance":
        return {"attr": "accuracy"}
    base = "ais_bench.benchmark"
    return {
        "attr": "performance",
        "type": f"{base}.summarizers.DefaultPerfSummarizer",
        "calculator": {
            "type": f"{base}.calculators.DefaultPerfMetricCalculator",
            "stats_list": list(STATISTICS),
        },
    }
