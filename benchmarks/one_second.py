"""What the harness takes beside the fleet's own time: the table of issue 21, row by row.

    python benchmarks/one_second.py [--runs 9] [ROW ...]

Each figure is the median of so many runs; rows by name, default all that this machine can measure.
"Beside" is the wall time less the second that stand-ins load and the benchmark's own. Byte code is
there, as it is after a first call, and no environment of tools: the rehearsal's own router is the
proxy, as in a fresh clone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts_start
import node_idle
import quickstart

from runs import ROOT, Ran, rehearse, timed
from tests.hosts.cases import spread
from tests.hosts.rig import Rig, why_not

CASE = "quickstart.yaml"
FILES, HOSTS = 1160, 8
#: A row's figures, by name; a row is measured so many times.
Figures = dict[str, list[float]]


def beside(ran: Ran) -> float:
    """Seconds that neither the stand-ins' load nor the benchmark used."""
    assert ran.code == 0, f"exit code {ran.code}, see {ran.path}"
    return quickstart.overhead(ran)


def released(ran: Ran) -> float:
    """Seconds from the benchmark's end to the last worker that heard of the run's."""
    ends = ran.events("phase-end")
    over = max(event["time"] for event in ends if event["phase"] == "bench")
    return float(max(event["time"] for event in ends if event["phase"] == "hold") - over)


def places(runs: int) -> Iterator[Path]:
    """Directories that do not stay; what the first one warms is not counted by those who ask."""
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="one-second-") as place:
            yield Path(place)


def command(runs: int) -> Figures:
    """``nox -s multinode -- quickstart.yaml``, its environment there."""
    nox = shutil.which("nox")
    if not nox and not importlib.util.find_spec("nox"):
        return {}
    words = [nox] if nox else [sys.executable, "-m", "nox"]
    argv = [*words, "-s", "multinode", "--", CASE]
    found = [beside(timed([*argv, "--run-dir", f"{p}/run"], p / "run")) for p in places(runs + 1)]
    return {"nox -s multinode -- quickstart.yaml, beside; s": found[1:]}


def run(runs: int) -> Figures:
    """``ci.run quickstart.yaml``, and what lies inside of it."""
    every = []
    for place in places(runs + 1):
        ran = rehearse(CASE, place / "run")
        every.append((beside(ran), quickstart.first_request(ran), released(ran)))
    rows = list(map(list, zip(*every[1:], strict=True)))
    return {
        "ci.run quickstart.yaml, beside; s": rows[0],
        "last endpoint healthy to first request; s": rows[1],
        "benchmark's end to last node released; s": rows[2],
    }


def hand(runs: int) -> Figures:
    """Two node programs by hand."""
    found = []
    for place in places(runs + 1):
        argv = [sys.executable, "-m", "steps.node", "--case", CASE, "--rehearse", "--run-dir"]
        began = time.monotonic()
        programs = [
            subprocess.Popen(
                [*argv, str(place / str(index)), "--node-index", str(index)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for index in (0, 1)
        ]  # fmt: skip
        code = max(program.wait(600) for program in programs)
        found.append(beside(Ran(code, time.monotonic() - began, place / "0")))
    return {"two node programs by hand, beside; s": found[1:]}


def holding(runs: int) -> Figures:
    """CPU and memory of a node program while it holds; 20 s each, so three times at most."""
    found: Figures = {}
    for _ in range(min(runs, 3)):
        for row in node_idle.measure(20.0):
            who = "leader" if row["node"] == 0 else "worker"
            found.setdefault(f"CPU while holding, {who}; ms/s", []).append(row["cpu_ms_a_second"])
            found.setdefault(f"memory of a node program, {who}; MB", []).append(row["rss_mb"])
    return found


def imports(runs: int) -> Figures:
    """Interpreter and imports of the node program."""
    argv = [sys.executable, "-c", "import steps.node"]
    found = [timed(argv, ROOT).seconds for _ in range(runs + 1)]
    return {"interpreter and imports of the node program; s": found[1:]}


def validate(runs: int) -> Figures:
    """``validate`` of one file, and of as many as upstream has, all different."""
    argv = [sys.executable, "-m", "steps.validate"]
    one = [timed([*argv, str(ROOT / "configs" / CASE)], ROOT).seconds for _ in range(runs + 1)]
    sources = [p for p in sorted((ROOT / "configs").glob("*.yaml")) if p.stat().st_size > 2000]
    with tempfile.TemporaryDirectory(prefix="one-second-") as place:
        for number in range(FILES):
            text = sources[number % len(sources)].read_text(encoding="utf-8")
            (Path(place) / f"{number}.yaml").write_text(f"{text.rstrip()}\n# {number}\n")
        many = [timed([*argv, place], ROOT).seconds for _ in range(runs + 1)]
    return {"validate of one file; s": one[1:], f"validate of {FILES} files; s": many[1:]}


def hosts(runs: int) -> Figures:
    """SSH hosts to all node programs running, beyond the slowest handshake."""
    if why_not():
        return {}
    with tempfile.TemporaryDirectory(prefix="one-second-") as place:
        rig = Rig(Path(place) / "start", HOSTS)
        try:
            case = spread(Path(place) / "case.yaml", HOSTS)
            found = [hosts_start.start(rig, case)["beyond_handshake"] for _ in range(runs + 1)]
        finally:
            rig.close()
    return {f"{HOSTS} SSH hosts to all node programs running, beyond the handshake; s": found[1:]}


ROWS: dict[str, Callable[[int], Figures]] = {
    row.__name__: row for row in (command, run, hand, holding, imports, validate, hosts)
}
LIMITS = {
    "nox": 1.2, "ci.run": 0.8, "two": 0.5, "last": 0.1, "benchmark's": 0.05, "interpreter": 0.1,
    "CPU while holding, leader": 1.0, "CPU while holding, worker": 0.5, "memory": 40,
    "validate of one": 0.12, f"validate of {FILES}": 3.0, f"{HOSTS} SSH": 1.0,
}  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(ROWS))
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    if odd := set(arguments.rows) - set(ROWS):
        parser.error(f"no row {', '.join(odd)}; there are {', '.join(ROWS)}")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="one-second-") as place:
        os.environ |= {"PYTHONPYCACHEPREFIX": place, "MULTINODE_CACHE": f"{place}/tools"}
        for name in arguments.rows or ROWS:
            found = ROWS[name](arguments.runs)
            if not found:
                print(json.dumps({"row": name, "not measured": "what it needs is not here"}))
            for what, values in found.items():
                limit = next(value for begin, value in LIMITS.items() if what.startswith(begin))
                median, least = statistics.median(values), min(values)
                row = {"median": round(median, 3), "least": round(least, 3), "limit": limit}
                print(json.dumps({"what": what, **row, "held": median <= limit}), flush=True)


if __name__ == "__main__":
    main()
