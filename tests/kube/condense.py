"""Recordings of a real cluster, and traces of the double, reduced to what must agree.

    python -m tests.kube.condense TRACES_DIRECTORY      rewrites tests/kube/recordings/ from raw
    recordings

Enters: rows of a trace (``http``, ``watch``, ``log``, ``exec`` ...). Leaves: per object the
    sequence of states, with
types, phases, reasons, conditions, exit codes and counters, per object the events, the shape (all
field paths) of each kind, and requests with their answers. The same function condenses both
sides, so a rule here can hide a difference but cannot invent an agreement.

What it leaves out, because it differs between the recordings themselves:
times, uids, hashes and versions; how often a probe failed; repeated writes of an equal state; the
finalizer of a pod; ``updatedReplicas`` of a LeaderWorkerSet seen a moment before ``replicas``;
events about probes that ran into a dying container, about the service account's volume, and from
the endpoint slice controller.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).with_name("recordings")
Row = dict[str, Any]
_NOISE = (
    "Readiness probe errored",
    "kube-api-access",
    "Error updating Endpoint Slices",
)
_FIELDS = ("pods", "statefulsets", "leaderworkersets")


def normal(text: str) -> str:
    """The text without what changes from run to run."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID", text)
    text = re.sub(r"\b[0-9a-f]{64}\b", "ID", text)
    text = re.sub(r"revision with key \w+", "revision with key HASH", text)
    text = re.sub(r'-[0-9a-f]{8,10}": must be', '-HASH": must be', text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME", text)


def condense(rows: Iterable[Row]) -> dict[str, Any]:
    """A whole scenario: states by resource and object (one list a life, by uid), events, logs,
    shapes."""
    states: dict[str, dict[str, dict[str, list[str]]]] = {field: {} for field in _FIELDS}
    events: dict[str, list[str]] = {}
    logs: dict[str, list[str]] = {}
    shapes: dict[str, set[str]] = {}
    for row in rows:
        if row["kind"] == "log":
            logs.setdefault(row["pod"], []).append(row["line"].partition(" ")[2])
        if row["kind"] != "watch" or "object" not in row["event"]:
            continue
        resource, type_, obj = row["resource"], row["event"]["type"], row["event"]["object"]
        if type_ in ("ERROR", "BOOKMARK"):
            continue
        shapes.setdefault(resource, set()).update(shape(obj))
        if resource == "events":
            about = obj["involvedObject"]
            text = (
                f"{obj['type']} {obj['reason']} {obj['reportingComponent']}: "
                f"{normal(obj['message'])}"
            )
            told = events.setdefault(f"{about['kind']}/{about['name']}", [])
            if text not in told and not any(noise in text for noise in _NOISE):
                told.append(text)
            continue
        text = {"pods": pod_state, "statefulsets": stateful_state, "leaderworkersets": lws_state}[
            resource
        ](obj)
        lives = states[resource].setdefault(obj["metadata"]["name"], {})
        life = lives.setdefault(obj["metadata"]["uid"], [])
        if type_ != "MODIFIED":
            text = f"{type_} {text}"
        if text and (not life or life[-1] != text):
            life.append(text)
    return {
        **{
            field: {name: list(lives.values()) for name, lives in states[field].items()}
            for field in _FIELDS
        },
        "events": {about: told for about, told in sorted(events.items()) if told},
        "logs": logs,
        "shapes": {resource: sorted(paths) for resource, paths in shapes.items()},
    }


def _deleting(obj: Row) -> str:
    meta = obj["metadata"]
    return (
        f" deleting({meta.get('deletionGracePeriodSeconds')})"
        if meta.get("deletionTimestamp")
        else ""
    )


def _container(state: Row | None) -> str:
    """``terminated Error 1`` from a container's state or last state."""
    for what, inside in (state or {}).items():
        words = [what, *(str(inside[k]) for k in ("reason", "exitCode", "message") if k in inside)]
        return normal(" ".join(words))
    return "-"


def pod_state(pod: Row) -> str:
    """One line with everything that triage looks at."""
    status = pod["status"]
    conditions = []
    for condition in status.get("conditions") or []:
        text = f"{condition['type']}={condition['status']}"
        if condition.get("reason"):
            text += f"/{condition['reason']}"
        if condition.get("message"):
            text += f"({condition['message']})"
        conditions.append(text)
    containers = [
        f"[{c['name']}: {_container(c.get('state'))}; last {_container(c.get('lastState'))}; "
        f"restarts {c['restartCount']}; ready {c['ready']}; started {c.get('started')}]"
        for c in status.get("containerStatuses") or []
    ]
    parts = [status.get("phase", ""), " ".join(conditions), *containers]
    parts += ["ip"] if status.get("podIP") else []
    parts += ["bound"] if pod["spec"].get("nodeName") else []
    return " ".join(filter(None, parts)) + _deleting(pod)


def stateful_state(obj: Row) -> str:
    status = obj.get("status") or {}
    counts = (
        "observedGeneration",
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
    )
    return " ".join(f"{k}={status[k]}" for k in counts if k in status) + _deleting(obj)


def lws_state(obj: Row) -> str:
    status = dict(obj.get("status") or {})
    conditions = status.pop("conditions", [])
    if "updatedReplicas" in status and "replicas" not in status:
        return ""
    parts = [
        f"{k}={status[k]}"
        for k in ("observedGeneration", "readyReplicas", "replicas", "updatedReplicas")
        if k in status
    ]
    parts += [f"{c['type']}={c['status']}/{c['reason']}({c['message']})" for c in conditions]
    return " ".join(parts) + _deleting(obj)


# Parts of objects that the double does not fill as a real cluster does; see README.md of the
# double.
_OPEN = (
    "spec.volumes[].projected.sources",
    "metadata.managedFields",
    "spec.template.spec",
    "spec.leaderWorkerTemplate.leaderTemplate",
    "spec.leaderWorkerTemplate.workerTemplate",
)
# Written by a real cluster, not by the double.
NOT_WRITTEN = (
    "status.containerStatuses[].resources",
    "status.resources",
    "related",
    "status.containerStatuses[].volumeMounts[].recursiveReadOnly",
)


def shape(obj: Any, path: str = "") -> set[str]:
    """Every field path of an object; list items share one path, label and annotation keys are
    paths."""
    if path.startswith(_OPEN):
        return {next(o for o in _OPEN if path.startswith(o))}
    if any(path == n or path.startswith(n + ".") for n in NOT_WRITTEN):
        return set()
    if isinstance(obj, dict):
        return set().union(*(shape(v, f"{path}.{k}" if path else k) for k, v in obj.items())) or {
            path
        }
    if isinstance(obj, list):
        return set().union(*(shape(v, path + "[]") for v in obj)) or {path}
    return {path}


_VOLATILE = {
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "continue",
    "storageVersionHash",
}


def answer(body: Any) -> Any:
    """An answer's body without uids, versions and times."""
    if isinstance(body, dict):
        return {k: "*" if k in _VOLATILE else answer(v) for k, v in body.items()}
    if isinstance(body, list):
        return [answer(v) for v in body]
    return normal(body) if isinstance(body, str) else body


def exchanges(rows: Iterable[Row], reads: bool = False) -> list[Row]:
    """The requests of a recording with their answers; of the reads only refusals unless
    ``reads``."""
    kept = []
    for row in rows:
        if row["kind"] not in ("http", "exec") or (
            row.get("method") == "GET" and row["status"] == 200 and not reads
        ):
            continue
        body = row.get("response")
        if isinstance(body, str) and body.startswith("{"):
            body = json.loads(body)
        picked = {
            k: row[k]
            for k in (
                "kind",
                "method",
                "path",
                "query",
                "request",
                "pod",
                "command",
                "status",
                "note",
            )
            if row.get(k)
        }
        kept.append({**picked, "response": answer(body)})
    return kept


def frames(rows: list[Row]) -> list[Row]:
    """The exec sessions of a recording: per channel how many bytes, the outcome, the close code."""
    sessions: list[Row] = []
    for row in rows:
        if row["kind"] == "exec" and row["status"] == 101:
            sessions.append(
                {"command": row["command"], "first": None, "bytes": {}, "note": row.get("note")}
            )
        elif row["kind"] == "exec-frame":
            session = sessions[-1]
            session["first"] = session["first"] or [row["channel"], row["length"]]
            channel = str(row["channel"])
            session["bytes"][channel] = session["bytes"].get(channel, 0) + row["length"]
            if channel == "3":
                session["outcome"] = normal(row["data"])
        elif row["kind"] == "exec-close":
            sessions[-1]["close"] = row["code"]
    return sessions


def load(name: str) -> dict[str, Any]:
    """A condensed recording."""
    found: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
    return found


def dump(made: dict[str, Any]) -> str:
    """JSON with one row of a list a line: small, and a diff shows which row changed."""

    def inner(value: Any, depth: int) -> str:
        pad = " " * depth
        if isinstance(value, dict) and depth < 4:
            rows = [f"{pad}{json.dumps(k)}: {inner(v, depth + 1)}" for k, v in value.items()]
        elif isinstance(value, list) and depth < 5 and value:
            rows = [pad + inner(v, depth + 1 if isinstance(v, list) else 9) for v in value]
        else:
            return json.dumps(value, separators=(",", ":"))
        brackets = "{}" if isinstance(value, dict) else "[]"
        return (
            brackets[0] + "\n" + ",\n".join(rows) + "\n" + pad[:-1] + brackets[1]
            if rows
            else brackets
        )

    return inner(made, 1) + "\n"


def main(source: Path) -> int:
    """Condense every recording of a directory."""
    RECORDINGS.mkdir(exist_ok=True)
    shapes: dict[str, set[str]] = {}
    for path in sorted(source.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        whole = path.stem in ("refusals", "exec-and-logs", "watch-edges")
        made: dict[str, Any] = {"scenario": path.stem, "exchanges": exchanges(rows, reads=whole)}
        if path.stem == "exec-and-logs":
            made["sessions"] = frames(rows)
        if path.stem == "watch-edges":
            made["special"] = [
                r["event"]
                for r in rows
                if r["kind"] == "watch" and r["event"].get("type") in ("ERROR", "BOOKMARK", None)
            ]
        if not whole:
            made.update(condense(rows))
            for resource, paths in made.pop("shapes").items():
                shapes.setdefault(resource, set()).update(paths)
            for exchange in made["exchanges"]:
                del exchange["response"]
        (RECORDINGS / f"{path.stem}.json").write_text(dump(made))
    (RECORDINGS / "shapes.json").write_text(
        dump({resource: sorted(paths) for resource, paths in shapes.items()})
    )
    print(f"{sum(p.stat().st_size for p in RECORDINGS.glob('*.json')) // 1024} KiB in {RECORDINGS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
