"""A small case, a profile, and runs of the whole command against a double.

Enters: a double, a directory. Leaves: a finished or running ``python -m ci.run``
with its run directory. Touches that directory and the processes it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .double import KubeDouble

ROOT = Path(__file__).resolve().parents[2]

CASE = """\
test_name: pair
model: demo/tiny
num_nodes: 2
npu_per_node: 2
env_common:
  SERVER_PORT: 8080
deployment:
  - server_cmd: >
      vllm serve demo/tiny --host 0.0.0.0 --port $SERVER_PORT --data-parallel-size 4
      --data-parallel-size-local 2 --data-parallel-address $LOCAL_IP
      --data-parallel-rpc-port 13389 --tensor-parallel-size 1 --max-model-len 4096
  - server_cmd: >
      vllm serve demo/tiny --headless --data-parallel-size 4 --data-parallel-size-local 2
      --data-parallel-start-rank 2 --data-parallel-address $MASTER_IP
      --data-parallel-rpc-port 13389 --tensor-parallel-size 1 --max-model-len 4096
benchmarks:
  chat:
    case_type: performance
    dataset_path: vllm-ascend/GSM8K-in3500-bs2800
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 8
    max_out_len: 16
    batch_size: 4
    baseline: 100
"""

PROFILE = """\
image: registry.local/py:1
memory: 4Gi
shm: 64Mi
grace: 5
budgets: {scheduling: 20, pulling: 20, starting: 20}
"""


@dataclass(frozen=True)
class Place:
    """A cluster that tests run on, of which nothing is known but how to get in."""

    env: dict[str, str]
    profile: str
    namespace: str
    directory: Path

    def start(self, *options: str, **more: Any) -> Started:
        """Start ``multinode CASE --on k8s --rehearse`` there."""
        more.setdefault("profile", self.profile)
        return start(None, self.directory / "user", *options, env=self.env, **more)

    def tool(self, module: str, *argv: str, given: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of our modules there; case and profile are ``given``, or not there any more."""
        (self.directory / "user").mkdir(exist_ok=True)
        for name, content in (("case.yaml", CASE), ("lab.yaml", self.profile)) if given else ():
            (self.directory / "user" / name).write_text(content)
        return subprocess.run(
            [sys.executable, "-m", module, *argv],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def api(self) -> Any:
        """Our own way in."""
        from unittest import mock

        from k8s.api import client

        with mock.patch.dict(os.environ, self.env, clear=True):
            return client.connect()

    def items(self, plural: str) -> list[dict[str, Any]]:
        """Objects of ours that are there."""
        from k8s import manifest
        from k8s.api import client

        query = {"labelSelector": "app.kubernetes.io/managed-by=multinode"}
        assert manifest.MANAGED == {"app.kubernetes.io/managed-by": "multinode"}
        found: list[dict[str, Any]] = self.api().items(client.path(self.namespace, plural), query)
        return [item for item in found if item["metadata"]["name"].startswith("mn-pair-")]

    def left(self) -> list[str]:
        """Everything of ours that is still there."""
        kinds = ("pods", "leaderworkersets", "services", "configmaps")
        return [f"{kind}/{i['metadata']['name']}" for kind in kinds for i in self.items(kind)]


def real(image: str, namespace: str, directory: Path) -> Place:
    """The cluster of the kubeconfig."""
    from k8s.api import client

    namespace = namespace or client.connect().namespace
    profile = PROFILE.replace("registry.local/py:1", image).replace(": 20", ": 180")
    return Place(dict(os.environ), f"{profile}namespace: {namespace}\n", namespace, directory)


def environment(kube: KubeDouble, token: str = "", **more: str) -> dict[str, str]:
    """The environment of a user of this cluster, and of no other."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "GITHUB", "FAIL_TAG"))}
    config = kube.kubeconfig(None, token) if token else kube.kubeconfig()
    return {**own, "KUBECONFIG": str(config), "PYTHONUNBUFFERED": "1", **more}


@dataclass
class Started:
    """A command under way."""

    popen: subprocess.Popen[str]
    run_dir: Path
    log: Path

    def text(self) -> str:
        """What it has said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, words: str, seconds: float = 40.0) -> None:
        """Wait until it says ``words``."""
        await_(lambda: words in self.text() or self.popen.poll() is not None, seconds, self.text)
        assert words in self.text(), self.text()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def finish(self, seconds: float = 90.0) -> Done:
        """Wait for its end."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.text()}") from None
        verdict = self.run_dir / "verdict.json"
        found = json.loads(verdict.read_text()) if verdict.exists() else {}
        return Done(code, self.text(), self.run_dir, found)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


@dataclass
class Done:
    """A finished command."""

    code: int
    text: str
    run_dir: Path
    verdict: dict[str, Any]

    @property
    def reason(self) -> str:
        """The first cause's words."""
        return str((self.verdict.get("cause") or {}).get("reason", ""))


def start(
    kube: KubeDouble | None,
    directory: Path,
    *options: str,
    case: str = CASE,
    profile: str = PROFILE,
    env: dict[str, str] | None = None,
    rehearse: bool = True,
) -> Started:
    """Start ``multinode CASE --on k8s --rehearse`` on the double."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "case.yaml").write_text(case)
    (directory / "lab.yaml").write_text(profile)
    run_dir = directory / "run"
    argv = [sys.executable, "-m", "ci.run", str(directory / "case.yaml"), "--on", "k8s"]
    argv += ["--profile", str(directory / "lab.yaml"), "--verbose"]
    argv += ["--rehearse"] if rehearse else []
    argv += ["--run-dir", str(run_dir), *options]
    log = directory / "command.log"
    with log.open("w") as out:
        popen = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=env or (environment(kube) if kube else None),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
    return Started(popen, run_dir, log)


def await_(
    done: Callable[[], object], seconds: float = 20.0, what: Callable[[], object] = lambda: ""
) -> None:
    """Wait until ``done``; fails after ``seconds``, saying ``what``."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def pod_name(kube: KubeDouble, node: int) -> str:
    """The pod of a node of the only run."""
    names = sorted((pod["metadata"]["name"] for pod in kube.pods()), key=lambda n: (len(n), n))
    return str(names[node])


def program(kube: KubeDouble, node: int) -> int:
    """The PID on this machine of a node's program, the first child of its pod's first process."""
    first = kube.pid(pod_name(kube, node))
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return int(children[0])


def said(kube: KubeDouble, node: int, words: str) -> bool:
    """Whether a node's events say ``words``, as its volume has them on this machine.

    The volumes of pods that are gone may still be there.
    """
    name = f"volumes/work/run/node-{node}/events.jsonl"
    files = [kube.directory / "pods" / pod["metadata"]["uid"] / name for pod in kube.pods()]
    return any(words in path.read_text() for path in files if path.exists())


def running(kube: KubeDouble) -> list[dict[str, str]]:
    """Name and uid of pods whose container runs."""
    found = []
    for pod in kube.pods():
        states = [c["state"] for c in pod["status"].get("containerStatuses") or []]
        found += [pod["metadata"]] if any("running" in state for state in states) else []
    return found


def ready(kube: KubeDouble) -> int:
    """How many pods have finished."""
    conditions = [c for pod in kube.pods() for c in pod["status"].get("conditions") or []]
    return sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def gone(kube: KubeDouble, uid: str) -> bool:
    """Whether a pod is gone; its successor has the same name."""
    return all(entry["metadata"]["uid"] != uid for entry in kube.pods())


def leftovers(kube: KubeDouble) -> list[str]:
    """Everything of ours that is still on the cluster."""
    kinds = ("pods", "leaderworkersets", "statefulsets", "services", "configmaps", "secrets")
    return [
        f"{kind}/{item['metadata']['name']}"
        for kind in kinds
        for item in kube.objects(kind, kube.namespace)
        if item["metadata"]["name"].startswith("mn-")
    ]
