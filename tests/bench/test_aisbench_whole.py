"""AISBench's odd numbers through a whole run that is not rehearsed: exit code, files, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from steps.bench_drivers import practice
from steps.core.case.numbers import loads
from steps.core.plan.clusters import ROOT

from .conftest import SAMPLES

ENGINE = """\
    #!{python}
    import http.server, json, sys

    if "serve" not in sys.argv:
        sys.exit(print("0.11.0"))

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply({{"data": [{{"id": "demo/m"}}]}})

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply({{"choices": [{{"message": {{"content": "5"}}, "finish_reason": "stop"}}]}})

        def reply(self, body):
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    host, port = (sys.argv[sys.argv.index(name) + 1] for name in ("--host", "--port"))
    http.server.ThreadingHTTPServer((host, int(port)), Answer).serve_forever()
"""
CLIENT = """\
    #!{python}
    import os, re, shutil, sys
    from pathlib import Path

    if "--work-dir" in sys.argv:
        work = Path(sys.argv[sys.argv.index("--work-dir") + 1])
        shutil.copytree({sample!r}, work)
        name, pattern, new = os.environ["ODD"].split("|")
        for path in work.rglob(name):
            path.write_text(re.sub(pattern, new, path.read_text(), count=1))
"""
CASE = """\
test_name: one
model: demo/m
num_nodes: 1
npu_per_node: 1
env_common: {{SERVER_PORT: 8080}}
deployment:
  - server_cmd: vllm serve demo/m --host {host} --port $SERVER_PORT
proof: false
benchmarks:
  chat:
    case_type: performance
    dataset_path_local: {place}/data
    model_path: {place}/tokenizer
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 16
    max_out_len: 16
    batch_size: 2
    gates: ["success_ratio == 1", "output_throughput >= 100", "e2el_mean_ms <= 5000"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case, its data, an engine and a client, none of which the product knows."""
    place = tmp_path_factory.mktemp("whole")
    (place / "bin").mkdir()
    for name, text in (("vllm", ENGINE), ("client", CLIENT)):
        script = textwrap.dedent(text).format(
            python=sys.executable, sample=str(SAMPLES / "perf-good")
        )
        (place / "bin" / name).write_text(script)
        (place / "bin" / name).chmod(0o755)
    practice.write_dataset("gsm8k", place / "data", 16)
    practice.write_tokenizer(place / "tokenizer")
    host = f"127.84.{os.getpid() % 250}.{os.getpid() // 250 % 250 + 1}"
    (place / "one.yaml").write_text(CASE.format(place=place, host=host))
    return place


def ran(place: Path, run_dir: Path, odd: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the benchmark in the verdict, and what was printed; every JSON file is JSON."""
    env = {
        **os.environ,
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "MULTINODE_AIS_BENCH": str(place / "bin" / "client"),
        "MULTINODE_HISTORY": str(run_dir.parent / "history"),
        "ODD": odd,
    }
    command = (sys.executable, "-m", "ci.run", str(place / "one.yaml"), "--on", "local")
    done = subprocess.run(
        [*command, "--run-dir", str(run_dir)],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    for path in run_dir.parent.rglob("*.json"):
        if "out" not in path.parts:
            loads(path.read_text())
    for path in run_dir.rglob("*.jsonl"):
        if "out" not in path.parts:
            for line in path.read_text().splitlines():
                loads(line)
    verdict = json.loads((run_dir / "verdict.json").read_text())
    assert "Traceback" not in said and verdict["benchmarks"], said
    return done.returncode, verdict["benchmarks"][0], said


@pytest.mark.parametrize(
    ("odd", "code", "found"),
    [
        ("none|x|x", 0, ""),
        ("gsm8k.csv|^|\ufeff", 0, ""),
        ("gsm8k.json|557.0973|1,557.1", 0, ""),
        ("gsm8k.json|557.0973|inf", 3, "Output Token Throughput: found 'inf token/s'"),
        ("gsm8k.csv|109.0|nan", 3, "E2EL Average: found 'nan ms'"),
        ('gsm8k_details.jsonl|"id": 1,|"id": null,', 3, "id: found None"),
        ('gsm8k_details.jsonl|"output_tokens": 16|"output_tokens": NaN', 3, "found NaN"),
        ('gsm8k_details.jsonl|"output_tokens": 16|"output_tokens": 3', 1, "3 tokens of 16"),
    ],
)
def test_a_whole_run(place: Path, tmp_path: Path, odd: str, code: int, found: str) -> None:
    exit_code, result, said = ran(place, tmp_path / "run", odd)
    assert exit_code == code, said
    assert result["driver"] == "aisbench" and found in result["reason"]
    assert (result["status"] == "pass") == (code == 0)
    assert result["requests"]["sent"] == 16 and result["requests"]["ok"] >= 15
    assert all(gate["passed"] for gate in result["gates"]) and bool(result["gates"]) == (code == 0)
