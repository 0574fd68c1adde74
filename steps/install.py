"""install: the case's ``special_dependencies`` on this node.

Enters: a node's run. Leaves: ``install.log``. Touches: through pip, the Python
packages that the servers of this node will use.

What it changes stays on the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from steps.core.node import alone
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.record import evidence
from steps.core.record.records import Check
from steps.core.record.rundir import appending

NOT_INSTALLED = Check("special_dependencies", "skipped", "rehearsed: not installed")


def run(run: NodeRun) -> None:
    """Install ``special_dependencies`` into the servers' environment.

    Raises:
        StepFailed: pip fails, class infra.
    """
    servers = [process for process in run.me.processes if process.kind == "server"]
    log = run.dir.path / "install.log"
    argv = [run.plan.cluster.python, "-m", "pip", "install", *run.me.packages]
    with appending(log) as out:
        process = subprocess.Popen(
            argv,
            env=run.supervisor.environment(servers[0]),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            run.until(lambda: process.poll() is not None, lambda: f"pip install {run.me.packages}")
        finally:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise StepFailed(
            run.cause_of(
                "install",
                "infra",
                f"pip install {' '.join(run.me.packages)} failed with code {process.returncode}",
                evidence=evidence.of_log(log).lines,
                log=f"{run.me.name}/install.log",
                hint="Check the package names and versions in special_dependencies, and the index.",
            )
        )


def parts(run_: alone.StepRun) -> list[alone.Part]:
    """Nothing for a node without packages; a rehearsal only says that it installs none."""
    if run_.me.packages and run_.plan.rehearsed:
        run_.checks.append(NOT_INSTALLED)
        return []
    return [("install", run)] if run_.me.packages else []


main = alone.step("install", __doc__, parts, starts=True, everywhere=True)

if __name__ == "__main__":
    raise SystemExit(main())
