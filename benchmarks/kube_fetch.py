"""Fetching a gigabyte of logs out of a pod of the double: time, and the runner's memory.

    nice python benchmarks/kube_fetch.py [--mib 1024]

The runner side is a process of its own, so that its peak is its own. Prints
seconds and MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.kube import fleet  # noqa: E402
from tests.kube.double import KubeDouble  # noqa: E402

WRITE = """
import os, pathlib
run = pathlib.Path("/multinode/work/run/node-0"); run.mkdir(parents=True)
line = b"INFO 11-23 18:00:00 [loggers.py:127] Engine 000: Avg prompt throughput: %08d tokens/s\\n"
left = int(os.environ["MIB"]) << 20
with (run / "server.log").open("wb") as out:
    i = 0
    while left > 0:
        block = b"".join(line % (i + k) for k in range(10000))[:left]
        out.write(block); left -= len(block); i += 10000
(run / "record.json").write_text('{"artifacts": []}')
pathlib.Path("/multinode/work/done.json").write_text('{"exit_code": 0}')
import time; time.sleep(3600)
"""


def main() -> int:
    """Make the files, fetch them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--fetch", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fetch:
        return fetch(*arguments.fetch)
    with tempfile.TemporaryDirectory(prefix="kube-fetch-") as name:
        directory = Path(name)
        with KubeDouble(directory / "kube") as kube:
            script = (ROOT / "k8s" / "pod.py").read_text()
            kube.create(
                {
                    "kind": "ConfigMap",
                    "apiVersion": "v1",
                    "metadata": {"name": "code"},
                    "data": {"pod.py": script},
                }
            )
            kube.create(pod(arguments.mib))
            env = fleet.environment(kube)
            fleet.await_(lambda: ready(kube), 300)
            argv = [sys.executable, __file__, "--fetch", kube.namespace, str(directory / "run")]
            began = time.monotonic()
            out = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
            seconds = time.monotonic() - began
            found = json.loads(out.stdout)
    print(
        f"{arguments.mib} MiB in {seconds:.1f} s ({arguments.mib / seconds:.0f} MiB/s), "
        f"peak {found['after']} MiB, before the transfer {found['before']} MiB, "
        f"problems: {found['problems'] or 'none'}"
    )
    return 0


def pod(mib: int) -> dict[str, object]:
    """A pod with a run directory and a large log."""
    container = {
        "name": "node",
        "image": "registry.local/py:1",
        "command": ["python3", "-c", WRITE],
        "env": [{"name": "MIB", "value": str(mib)}],
        "readinessProbe": {
            "exec": {"command": ["test", "-f", "/multinode/work/done.json"]},
            "periodSeconds": 1,
        },
        "volumeMounts": [
            {"name": "work", "mountPath": "/multinode/work"},
            {"name": "code", "mountPath": "/multinode/bundle/0"},
        ],
    }
    volumes = [{"name": "work", "emptyDir": {}}, {"name": "code", "configMap": {"name": "code"}}]
    spec = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 1}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "mn-big-0"}, "spec": spec}


def ready(kube: KubeDouble) -> bool:
    """Whether the log is written."""
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for pod in kube.pods()
        for condition in pod["status"].get("conditions") or []
    )


def fetch(namespace: str, run_dir: str) -> int:
    """The runner's side."""
    from k8s.api import client
    from k8s.fetch import Fetch

    api = client.connect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    result = Fetch(
        api, namespace, "mn-big-0", 0, Path(run_dir), "python3", lambda: time.monotonic() + 600
    ).run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    found = {"before": before, "after": after, "problems": result.problems}
    print(json.dumps({**found, "pid": os.getpid()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
