"""How long a run on Kubernetes takes besides its work, on the double.

    python benchmarks/kube_run.py [--rounds 3] [--pods 4 64]

Measures, per round: from the LeaderWorkerSet being applied to every node's
harness running (its first event), with and without what the cluster itself
takes to start the containers; from a killed pod's death being published to the
run being over on every other node, and to the command's end. Prints seconds.

With ``--pods``: from the LeaderWorkerSet being applied to the harness running in each of so many
pods. All pods share this machine: what is theirs in parallel on a cluster is one after another
here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.kube import fleet
from tests.kube.double import KubeDouble, Timing


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pods", type=int, nargs="*", default=())
    given = parser.parse_args()
    rounds, sizes = given.rounds, given.pods
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="kube-run-") as name:
            place, found = Path(name), dict[str, float]()
            for size in sizes:
                found |= spreading(place / str(size), size)
            if not sizes:
                found = {**starting(place / "a"), **dying(place / "b")}
            for key, value in found.items():
                figures.setdefault(key, []).append(value)
    for key, values in figures.items():
        print(f"{key:58} median {statistics.median(values):5.2f} s, worst {max(values):5.2f} s")
    return 0


def starting(directory: Path) -> dict[str, float]:
    """From apply to every node's harness running."""
    with KubeDouble(directory / "kube", timing=Timing(backoff=1.0)) as kube:
        with fleet.start(kube, directory / "user") as started:
            started.until("applied mn-", 60)
            first: dict[str, float] = {}
            fleet.await_(lambda: note_running(kube, first) == 2, 60)
            done = started.finish()
        assert done.code == 0, done.text
        applied = next(
            event["time"]
            for event in events(done.run_dir / "events.jsonl")
            if str(event.get("text", "")).startswith("applied")
        )
        begun = max(events(done.run_dir / f"node-{i}" / "events.jsonl")[0]["time"] for i in (0, 1))
        running = max(first.values())
        return {
            "apply to every node's harness running": begun - applied,
            "  of it ours: container running to harness running": begun - running,
        }


def spreading(directory: Path, size: int) -> dict[str, float]:
    """From apply to the harness running in each of ``size`` pods."""
    head, _, entries = fleet.CASE.partition("deployment:\n")
    entries, _, tail = entries.partition("benchmarks:")
    leader, worker = (f"  - server_cmd{part}" for part in entries.split("  - server_cmd")[1:])
    ranks = f"--data-parallel-size {2 * size}"
    parts = [leader, *(worker.replace("rank 2", f"rank {2 * i}") for i in range(1, size))]
    body = "".join(parts).replace("--data-parallel-size 4", ranks)
    case = f"{head.replace('num_nodes: 2', f'num_nodes: {size}')}deployment:\n{body}"
    with (
        KubeDouble(directory / "kube") as kube,
        fleet.start(kube, directory / "user", case=f"{case}benchmarks:{tail}") as started,
    ):
        started.until("applied mn-", 120)
        applied = time.time()
        volume = "pods/*/volumes/work/run/node-*/events.jsonl"
        fleet.await_(lambda: len([*kube.directory.glob(volume)]) == size, 600, started.text)
        first = [path.read_text().partition("\n")[0] for path in kube.directory.glob(volume)]
        begun = max(json.loads(line)["time"] if line else time.time() for line in first)
    return {f"{size} pods: apply to every node's harness running": begun - applied}


def note_running(kube: KubeDouble, first: dict[str, float]) -> int:
    """When each pod's container was first seen running; how many were."""
    for pod in kube.pods():
        for entry in pod["status"].get("containerStatuses") or []:
            if "running" in entry["state"]:
                first.setdefault(pod["metadata"]["name"], time.time())
    return len(first)


def dying(directory: Path) -> dict[str, float]:
    """From a pod's death to the end."""
    with (
        KubeDouble(directory / "kube", timing=Timing(backoff=1.0)) as kube,
        fleet.start(kube, directory / "user", "--load-seconds", "20") as started,
    ):
        started.until("started server", 60)
        time.sleep(2)
        pod = max((p["metadata"]["name"] for p in kube.pods()), key=len)
        kube.signal(pod, 9)

        def shown() -> bool:
            rows = [p for p in kube.pods() if p["metadata"]["name"] == pod]
            status = rows[0]["status"]["containerStatuses"][0]
            return bool(status["restartCount"] or "terminated" in status["state"])

        fleet.await_(shown, 20)
        told = time.time()
        done = started.finish()
        ended = time.time()
    assert done.code == 3, done.text
    record = json.loads((done.run_dir / "node-0" / "record.json").read_text())
    notes = events(done.run_dir / "events.jsonl")
    seen = next(e["time"] for e in notes if e["what"] == "cause" and e["node"] < 0)
    return {
        "death shown by the API to its cause said": seen - told,
        "death shown by the API to the run over on the other node": record["ended"] - told,
        "death shown by the API to the command's end, all deleted": ended - told,
    }


def events(path: Path) -> list[dict[str, object]]:  # type: ignore[type-arg]
    """The events of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
