"""How long the ends of a run on Kubernetes take, and what it costs besides its case, on the double.

    nice python benchmarks/kube_times.py [--rounds 3] [--only overhead killed early third token]

The double is as slow as the recorded cluster was. Prints seconds:

- overhead: from the command's start to its end, without the time from the leader's preflight to
  its proof. Target: 4. Whoever shares the machine makes it longer: compare with floor and work.
- floor: of it the cluster's own: the same number of pods, which do nothing, from apply to
  running, and from deletion to gone.
- work: CPU seconds of that command and of all that its pods ran.
- killed: from the leader's program being killed to the end of the command. Target: 6.
- early: from SIGTERM in a pod's first second to the end of its container; its grace is 20. Of one
  that came before its interpreter ran, no process 1 can know. Target: 3.
- third: from the third Ctrl-C to the deletion being asked for, while a node's program stands
  still. Target: 1.
- token: from the start with a wrong static token to the end of the command. Target: 3.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from k8s.api import client
from tests.kube import fleet
from tests.kube.double import KubeDouble, Timing

#: The middle of what was recorded, see ``Timing``.
RECORDED = Timing(
    sync=0.1, collect=0.12, kubelet=0.2, sandbox=0.25, stop=0.3, remove=0.7, backoff=10.0
)


def overhead(root: Path) -> float:
    """A whole run."""
    return _run(root)[0]


def work(root: Path) -> float:
    """CPU seconds of a whole run."""
    return _run(root)[1]


def _run(root: Path) -> tuple[float, float]:
    """Seconds besides the case, and CPU seconds in all."""
    before = _spent()
    with KubeDouble(root / "kube", timing=RECORDED) as kube:
        began = time.time()
        with fleet.start(kube, root / "user") as started:
            done = started.finish()
        ended = time.time()
    spent = _spent() - before
    assert done.code == 0, done.text
    record = json.loads((done.run_dir / "node-0" / "record.json").read_text())
    phases = {phase["name"]: phase for phase in record["phases"]}
    last = phases["proof"]
    case = last["started"] + last["seconds"] - phases["preflight"]["started"]
    return ended - began - case, spent


def _spent() -> float:
    """CPU seconds of the commands and pods so far; the double itself is a thread of ours."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def floor(root: Path) -> float:
    """What nobody can hasten from outside."""
    program = "import signal; signal.signal(15, lambda *_: exit(0)); signal.pause()"
    container = {"name": "node", "image": "registry.local/py:1"}
    container["command"] = ["python3", "-I", "-S", "-c", program]  # type: ignore[assignment]
    meta = {"name": "bare", "namespace": "rec"}
    template = {"size": 2, "restartPolicy": "None", "workerTemplate": {}}
    template["workerTemplate"] = {"spec": {"containers": [container]}}
    body = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": meta,
        "spec": {"replicas": 1, "leaderWorkerTemplate": template},
    }
    with KubeDouble(root / "kube", timing=RECORDED) as kube:
        with mock.patch.dict(os.environ, fleet.environment(kube), clear=True):
            api = client.connect()
        began = time.monotonic()
        api.apply(client.path("rec", "leaderworkersets", "bare"), body)
        fleet.await_(lambda: len(fleet.running(kube)) == 2, 60)
        ran = time.monotonic() - began
        began = time.monotonic()
        api.delete(client.path("rec", "leaderworkersets", "bare"), "Foreground")
        fleet.await_(lambda: not kube.objects("leaderworkersets", "rec"), 60)
        return ran + time.monotonic() - began


def killed(root: Path) -> float:
    """The leader's program is killed while the engines serve."""
    with (
        KubeDouble(root / "kube", timing=RECORDED) as kube,
        fleet.start(kube, root / "user", "--load-seconds", "20") as started,
    ):
        started.until("started server", 60)
        time.sleep(1)
        os.kill(fleet.program(kube, 0), signal.SIGKILL)
        began = time.monotonic()
        done = started.finish()
        seconds = time.monotonic() - began
    assert done.code == 3, done.text
    return seconds


def early(root: Path) -> float:
    """The worst of several moments in the pods' first second."""
    worst = 0.0
    profile = fleet.PROFILE.replace("grace: 5", "grace: 20")
    for moment in (0.05, 0.15, 0.3, 0.6):
        with (
            KubeDouble(root / f"kube-{moment}", timing=RECORDED) as kube,
            fleet.start(kube, root / f"user-{moment}", profile=profile) as started,
        ):
            fleet.await_(partial(fleet.running, kube), 60)
            time.sleep(moment)
            pod = fleet.running(kube)[0]
            kube.evict(pod["name"])
            began = time.monotonic()
            fleet.await_(partial(fleet.gone, kube, pod["uid"]), 60)
            worst = max(worst, time.monotonic() - began)
            started.finish()
    return worst


def third(root: Path) -> float:
    """Three Ctrl-C, a second apart."""
    with (
        KubeDouble(root / "kube", timing=RECORDED) as kube,
        fleet.start(kube, root / "user", "--load-seconds", "60") as started,
    ):
        started.until("started server", 60)
        os.kill(fleet.program(kube, 1), signal.SIGSTOP)
        for _ in range(3):
            time.sleep(1)
            started.signal(signal.SIGINT)
        began = time.monotonic()
        fleet.await_(lambda: any(method == "DELETE" for method, _ in kube.api.requests), 60)
        return time.monotonic() - began


def token(root: Path) -> float:
    """A kubeconfig with a token that nobody knows."""
    with KubeDouble(root / "kube") as kube:
        began = time.monotonic()
        env = fleet.environment(kube, "nobody-knows-it")
        with fleet.start(kube, root / "user", env=env) as started:
            done = started.finish(120)
    assert done.code == 3, done.text
    return time.monotonic() - began


FIGURES = {what.__name__: what for what in (overhead, floor, work, killed, early, third, token)}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=tuple(FIGURES), default=tuple(FIGURES))
    arguments = parser.parse_args()
    for name in arguments.only:
        found = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory(prefix="kube-times-") as directory:
                found.append(FIGURES[name](Path(directory)))
        rounds = ", ".join(f"{seconds:.2f}" for seconds in found)
        print(f"{name:10} median {statistics.median(found):5.2f} s of {rounds}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
