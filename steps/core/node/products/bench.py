"""The bench of an installation: where its commands run, and what becomes of their failures.

Enters: a node's run, a product. Leaves: output in ``install.log``; a cause for what fails, by a
rule of ``rules``, which the cause names. Touches: starts commands, and ends them with the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from steps.core.errors import MultinodeError
from steps.core.node.noderun import NodeRun, StepFailed
from steps.core.node.products import rules
from steps.core.plan import clusters
from steps.core.plan.products import Product
from steps.core.record import evidence
from steps.core.record.rundir import appending
from steps.core.system import git, machine

PYTHON_SECONDS = 60


@dataclass
class Bench:
    """Where commands of an installation run, and what becomes of their failures."""

    run: NodeRun
    env: Mapping[str, str]
    python: str = "python3"
    product: Product = field(default_factory=lambda: Product(""))
    until: float = 0.0

    @property
    def log(self) -> Path:
        """What commands print."""
        return self.run.dir.path / "install.log"

    def call(self, stage: str, argv: Sequence[str], cwd: Path, **more: str) -> None:
        """Run a command to its end.

        Raises:
            StepFailed: it fails, or takes longer than the product may.
        """
        with appending(self.log) as out:
            out.write(self.run.redactor.text(f"\n$ {' '.join(argv)}\n").encode())
            out.flush()
            begins = out.tell()
            try:
                code = wait_for(self.run, argv, {**self.env, **more}, cwd, out, self.until)
            except OSError as error:
                raise self.failed("rights", f"{argv[0]}: {error.strerror}") from None
        output = self.log.read_bytes()[begins:].decode("utf-8", "replace")
        if code is None:
            told = f"not done after {self.product.seconds:g} s at: {' '.join(argv[:6])}"
            raise self.ruled(rules.TIME, told)
        if code:
            how = f"signal {-code}" if code < 0 else f"code {code}"
            output += ": Killed" if code == -signal.SIGKILL else ""
            rule = rules.decide(stage, output, self.product.distribution)
            raise self.ruled(rule, f"{rule.says} ({' '.join(argv[:6])}: {how})")

    def ruled(self, rule: rules.Rule, says: str) -> StepFailed:
        """The cause that a rule makes, which it names."""
        return StepFailed(
            self.run.cause_of(
                "install", rule.verdict,
                f"{self.product}: {says}; by the rule '{rule.name}'",
                evidence=tuple(self.run.redactor.value(list(evidence.of_log(self.log).lines))),
                log=f"{self.run.me.name}/{self.log.name}", hint=rule.hint,
            )
        )  # fmt: skip

    def failed(self, name: str, says: str, verdict: str = "infra", hint: str = "") -> StepFailed:
        """The cause of what no command's output shows."""
        return self.ruled(rules.Rule(name, verdict, "", hint), says)

    def git(self, checkout: Path, *words: str) -> str:
        """Ask git something that needs no network."""
        try:
            return git.git(checkout, *words)
        except MultinodeError as error:
            rule = rules.decide("git", error.message)
            raise self.ruled(rule, f"{rule.says}: {error.message}") from None

    def abi(self) -> str:
        """What a build depends on besides its files."""
        found = machine.versions_of([self.python], ("torch", "torch-npu"), self.env)
        found = {name: found[name] for name in ("torch", "torch-npu") if name in found}
        argv = [self.python, "-c", "import sys, platform as p; print(sys.version, p.machine())"]
        try:
            told = subprocess.check_output(argv, env=self.env, text=True, timeout=PYTHON_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise self.failed("rights", f"{self.python} does not run: {error}") from None
        return f"{self.python} {told.strip()} {found} {machine.cann()}"

    def note(self, text: str) -> None:
        """Say what was done."""
        self.run.events.emit("note", text=f"{self.product}: {text}")


def wait_for(
    run: NodeRun,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    out: IO[bytes],
    until: float = 0.0,
) -> int | None:
    """The exit code of a command; None when its time is over. It never outlives the run.

    Args:
        until: by the monotonic clock; 0: the phase's budget is all.
    """
    process = subprocess.Popen(
        argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip

    def over() -> bool:
        return bool(until) and time.monotonic() > until

    try:
        run.until(lambda: process.poll() is not None or over(), lambda: " ".join(argv[:6]))
        return process.poll()
    finally:
        if process.poll() is None:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def bench_of(run: NodeRun) -> Bench:
    """The environment of the node's first server: what it would import is what is installed."""
    servers = [process for process in run.me.processes if process.kind == "server"]
    first = servers[0] if servers else run.me.processes[0]
    return Bench(run, run.supervisor.environment(first), run.plan.cluster.python)


def pip(bench: Bench, stage: str, *words: str) -> None:
    """``pip install``; it moves what is there already, forwards or backwards, where it must."""
    argv = [bench.python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    bench.call(stage, [*argv, *bench.product.options, *words], bench.run.dir.path,
               **bench.product.env)  # fmt: skip


def wheel(bench: Bench, path: Path) -> None:
    """A wheel replaces one of the same version, then what it needs is moved."""
    pip(bench, "pip", "--force-reinstall", "--no-deps", str(path))
    return pip(bench, "pip", str(path))


def carried(path: str) -> Path:
    """A file that came with the node program, or one of this machine."""
    return clusters.ROOT / path
