"""A node run on its own, an endpoint that answers or does not, and a made-up ``ais_bench``."""

from __future__ import annotations

import http.server
import json
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steps.bench_drivers import Job
from steps.core.case.build import load_case
from steps.core.node.noderun import NodeRun
from steps.core.plan import clusters
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.plan import Endpoint
from steps.core.plan.resolver import Options, resolve
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir
from steps.core.redaction import Redactor
from tests.bench import engine

SAMPLES = Path(__file__).parents[1] / "data" / "aisbench"

CASE = """\
model: demo/tiny
num_nodes: 1
npu_per_node: 1
deployment:
  - server_cmd: vllm serve demo/tiny --port $SERVER_PORT
benchmarks:
  perf:
    case_type: performance
    dataset_path: org/GSM8K-x
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 16
    max_out_len: 16
    batch_size: 4
    baseline: 1000
  acc:
    case_type: accuracy
    dataset_path: org/gsm8k-lite
    request_conf: vllm_api_general_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_chat_prompt
    num_prompts: 16
    max_out_len: 64
    batch_size: 4
    baseline: 75
    threshold: 1
"""

FAKE = """\
    #!{python}
    import json, os, shutil, signal, subprocess, sys, time
    from pathlib import Path

    WORDS = os.environ["FAKE_AISBENCH"].split()
    work = Path(sys.argv[sys.argv.index("--work-dir") + 1])
    Path("seen.json").write_text(json.dumps({{"argv": sys.argv, "env": dict(os.environ)}}))
    print("ais_bench: begun", flush=True)
    for word in WORDS:
        name, _, value = word.partition("=")
        if name == "child":
            code = "import time; time.sleep(300)"
            away = value == "away"
            child = subprocess.Popen([sys.executable, "-c", code], start_new_session=away)
            with open("children", "a") as out:
                print(child.pid, file=out)
        elif name == "leave":
            shutil.copytree(Path({samples!r}) / value, work)
        elif name == "say":
            print(value, flush=True)
        elif name == "count":
            for turn in range(int(value)):
                print(f"POST={{turn}} (1.0/s)  FIN=0 (0.0/s)", flush=True)
                time.sleep(0.1)
        elif name == "chatter":
            for turn in range(300):
                print(f"POST=16 ({{16 / (turn + 1):.1f}}/s)  FIN=0 (0.0/s)", flush=True)
                time.sleep(0.1)
        elif name == "hang":
            print("ais_bench: hanging", flush=True)
            time.sleep(300)
        elif name == "kill":
            os.kill(os.getpid(), int(value))
            time.sleep(300)
        elif name == "exit":
            sys.exit(int(value))
"""


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[http.server.ThreadingHTTPServer]:
    """An endpoint whose ``answer`` is a status and a body; at first it answers well."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    message = {"choices": [{"message": {"content": "5"}}]}
    server.answer = (200, json.dumps(message).encode())  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Bench:
    """A leader of a one-node plan, ready to measure."""

    def __init__(self, tmp_path: Path, url: str) -> None:
        case_file = tmp_path / "case.yaml"
        case_file.write_text(CASE)
        program = tmp_path / "ais_bench"
        program.write_text(
            textwrap.dedent(FAKE).format(python=sys.executable, samples=str(SAMPLES))
        )
        program.chmod(0o755)
        case = load_case(case_file)
        cluster = clusters.local(
            case, rehearsal=Rehearsal(), network="71.9", ais_bench=str(program)
        )
        plan = resolve(case, cluster, Options("test-run", "aisbench"))
        plan = replace(plan, endpoint=Endpoint(url, "demo/tiny", "server"))
        self.seen: list[object] = []
        run_dir = RunDir(tmp_path / "run").make()
        events = EventLog(
            run_dir.node(0).make().events, plan.run, 0, Redactor(), [self.seen.append]
        )
        self.run = NodeRun(plan, 0, run_dir, events)
        self.place = self.run.dir.bench / "00-perf"
        self.place.mkdir(parents=True)

    def job(self, name: str) -> Job:
        """The benchmark of that name, not scaled down."""
        [entry] = [e for e in self.run.plan.benchmarks if e.benchmark.name == name]
        return Job(entry, self.run.plan.endpoint, self.place)

    def budget(self, seconds: float, stall: float = 0.0) -> None:
        """What is left for the benchmark, and how long it may stand still."""
        plan = self.run.plan
        budget = replace(plan.budgets["bench"], seconds=seconds, stall=stall or seconds)
        self.run.plan = replace(plan, budgets={**plan.budgets, "bench": budget})
        self.run.begin_budget("bench")


@pytest.fixture
def bench(
    tmp_path: Path, endpoint: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    monkeypatch.setenv("FAKE_AISBENCH", "")
    made = Bench(tmp_path, f"http://127.0.0.1:{endpoint.server_port}")
    yield made
    made.run.events.close()


@pytest.fixture
def url() -> Iterator[str]:
    server = engine.Server(("127.0.0.1", 0), engine.Engine)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
