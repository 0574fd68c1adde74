"""A node program runs before its servers, and its servers as they would have run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from steps.core.plan.clusters import ROOT

PROGRAM = """
import os, sys
from pathlib import Path
from steps.core.system import priority
from steps.core.plan.plan import Process
from steps.core.node.supervisor import Supervisor
from steps.core.record.rundir import NodeDir
before = priority.normal()
priority.raise_own()
supervisor = Supervisor(NodeDir(Path(sys.argv[1])).make(), "m", dict(os.environ), lambda r: None,
                        nice=before)
running = supervisor.start(Process("server", "server", ("sleep", "9")))
theirs = os.getpriority(os.PRIO_PROCESS, running.pid)
supervisor.stop([running.process.name], lambda: 0.0)
print(before, priority.normal(), theirs)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run before others")
def test_servers_keep_the_priority_they_would_have_had(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    before, own, theirs = map(int, done.stdout.split())
    assert own == max(before - 5, -20)
    assert theirs == before
