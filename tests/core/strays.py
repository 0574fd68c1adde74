"""Strays of every kind: children that hide from whoever looks by group, session or environment.

Each writes the numbers of its processes into a roster; a test asks whether they live.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

_HEAD = """
import ctypes, os, signal, sys, time
roster, lasting = sys.argv[1], float(sys.argv[2])
def here():
    out = os.open(roster, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(out, b"%d\\n" % os.getpid())
    os.close(out)
def away():
    if os.fork():
        os._exit(0)
    os.setsid()
def forget():  # as setproctitle does: what /proc/PID/environ shows is written over in place
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    ctypes.memset(start, 0, end - start)
    ctypes.CDLL(None).prctl(15, b"VLLM::EngineCor", 0, 0, 0)
"""
_STAY = "\nhere()\ntime.sleep(lasting)\n"
#: What each does before it stays.
KINDS = {
    "forked twice": "away()\naway()",
    "environment cleared": (
        "away()\nif os.environ.get('PATH'):\n"
        "    os.execve(sys.executable, [sys.executable, '-c', CODE, *sys.argv[1:]], {})"
    ),
    "environment written over": "away()\nforget()",
    "deaf": "forget()\nfor each in (1, 2, 15): signal.signal(each, signal.SIG_IGN)\naway()",
    "stopped": "forget()\naway()\nhere()\nos.kill(os.getpid(), signal.SIGSTOP)",
    "closed all": "forget()\naway()\nos.chdir('/')\nhere()\nos.closerange(0, 256)",
    "forks and ends": (
        "forget()\naway()\nfor each in range(400):\n    here()\n    time.sleep(0.02)\n"
        "    if os.fork():\n        os._exit(0)"
    ),
    "forks and stays": (
        "forget()\naway()\nfor each in range(60):\n    time.sleep(0.02)\n"
        "    if not os.fork():\n        away()\n        here()\n        time.sleep(lasting)\n"
    ),
}
#: Runs in each process that has its directory on PYTHONPATH; only servers have strays.
_CUSTOMIZE = """
import json, os, subprocess
if os.environ.get("REHEARSAL_PROCESS", "").startswith("server"):
    os.environ.pop("PYTHONPATH", None)
    open(os.path.join(os.environ["TMPDIR"], "vllm_dist_" + str(os.getpid())), "w").close()
    for words in json.load(open({commands!r})):
        subprocess.Popen(words, stdin=subprocess.DEVNULL)
"""
#: All but the one whose children leave at once, the last of them after the guard's last look:
#: where a node program is killed by hand and nobody above it adopts, those are not found.
SEEN = tuple(kind for kind in KINDS if kind != "forks and stays")


def plant(place: Path, kinds: Iterable[str] = tuple(KINDS)) -> tuple[Path, dict[str, str]]:
    """Every kind from each server of a rehearsal: the roster, and its environment's part."""
    roster, commands, temporary = place / "roster", place / "commands.json", place / "t"
    commands.write_text(json.dumps([argv(kind, roster) for kind in kinds]))
    (place / "sitecustomize.py").write_text(_CUSTOMIZE.format(commands=str(commands)))
    temporary.mkdir()
    return roster, {"PYTHONPATH": str(place), "TMPDIR": str(temporary)}


def argv(kind: str, roster: Path, lasting: float = 120.0) -> list[str]:
    """The command that leaves strays of a kind."""
    code = _HEAD + KINDS[kind] + _STAY
    code = f"CODE = {code!r}\n" + code if "CODE" in KINDS[kind] else code
    return [sys.executable, "-c", code, str(roster), str(lasting)]


def listed(roster: Path) -> list[int]:
    """Who has ever been in the roster."""
    return list(map(int, roster.read_text().split())) if roster.exists() else []


def alive(roster: Path) -> list[int]:
    """Who of the roster lives."""
    found = []
    for pid in listed(roster):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def looks(guard: int) -> int:
    """How often a guard has woken up; after two more it knows everybody who is there now."""
    status = Path(f"/proc/{guard}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
