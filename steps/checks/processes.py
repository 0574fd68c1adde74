"""The check ``check_rank0_process_count``: one server on the leader, and no second.

Enters: a run whose servers live. Leaves: a check. Touches: reads /proc, processes of this node's
run alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from steps.checks.asking import said
from steps.core.node.noderun import NodeRun, marker
from steps.core.record.records import Check
from steps.core.record.rundir import read_json
from steps.core.system import ancestry, proc
from steps.core.system.guard import marked

_NAME = "check_rank0_process_count"
_WORDS = ("vllm", "serve")


def check_rank0_process_count(run: NodeRun) -> Iterator[Check]:
    """Exactly one process with ``vllm`` and ``serve`` in its words; what it forks is part of it."""
    seen = dict(ancestry.every())
    # Servers that another step holds are in a table of its own, and carry its mark.
    marks = [marker(run.run_dir, run.me.index, step) for step in ("", "serve")]
    mine = {*ancestry.below(_started(run), seen), *marked(*marks)}
    found = {pid: words for pid in sorted(mine) if (words := _words(pid))}
    servers = [pid for pid in found if pid not in seen or seen[pid].parent not in found]
    listed = "; ".join(f"pid {pid}: {found[pid][:120]}" for pid in servers)
    status = "pass" if len(servers) == 1 else "fail"
    yield said(
        _NAME, status, "processes with vllm and serve", "1", f"{len(servers)} ({listed or 'none'})"
    )


def _started(run: NodeRun) -> Iterator[int]:
    for table in run.dir.path.glob("processes*.json"):
        entries = read_json(table)
        for entry in entries if isinstance(entries, list) else ():
            if str(entry.get("name", "")).startswith("server") and not entry.get("exit"):
                yield int(entry["pid"])


def _words(pid: int) -> str:
    """The command of a server; empty when it is none, or is gone."""
    with contextlib.suppress(OSError):
        raw = (proc.PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
        words = raw.split("\0")
        if all(any(wanted in word for word in words) for wanted in _WORDS):
            return " ".join(words)
    return ""
