"""What a node hears from others: the leader, its starter, signals, workers.

Enters: states, words, signals, at any moment and on any thread. Leaves: causes of the node's run,
as soon as there is one; what came earlier is kept until then. Touches: signal handlers, standard
input.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from steps.core.node import contract
from steps.core.node.noderun import NodeRun
from steps.core.node.rendezvous.messages import State
from steps.core.plan.plan import LEADER


class Inbox:
    """Ears of one node.

    Attributes:
        told: the leader said how the run ended, or never will.
        early: there was an interrupt before there was a run.
        hopeless: why the nodes will never meet, as the starter saw it; empty while they may.
    """

    def __init__(self) -> None:
        self.run: NodeRun | None = None
        self.told = threading.Event()
        self.early = threading.Event()
        self.state = State(seq=-1)
        self.refused = ""
        self.leaderless = ""
        self.hopeless = ""
        self._early_interrupts = 0
        self._early_words: list[str] = []

    def attach(self, run: NodeRun) -> None:
        """From here on all reaches the run by itself; let it know what happened before."""
        self.run = run
        if run.leader:
            run.leader.on_change = run.ended.stir
        run.interrupts = max(self._early_interrupts - 1, 0)
        if self.early.is_set():
            self.interrupt("interrupted before the start")
        self.on_state(self.state)
        if self.leaderless:
            self.on_lost(self.leaderless)
        if self.refused:
            self.on_refused(self.refused)
        for word in self._early_words:
            self.obey(word)
        if run.leader and any(m.lost or m.causes for m in run.leader.members.values()):
            run.ended.set()

    # From the leader, or from workers

    def on_state(self, state: State) -> None:
        """The run's state changed."""
        self.state = state
        if self.run is None:
            return
        self.run.state = state
        if state.ended is None:
            self.run.ended.stir()
            return
        self.run.cause = state.ended.cause
        self.told.set()
        self.run.ended.set()

    def on_lost(self, why: str) -> None:
        """The leader does not answer any more."""
        self.leaderless = why
        run = self.run
        if run is None:
            return
        run.add_cause(
            run.cause_of(
                "lost",
                "infra",
                f"the leader is lost: {why}",
                node=run.plan.nodes[LEADER],
                process="node",
                hint="Look at the leader's node and logs.",
            )
        )
        self.told.set()

    def on_refused(self, why: str) -> None:
        """The leader does not want this node."""
        self.refused = why
        run = self.run
        if run is not None:
            run.add_cause(run.cause_of("config", "config", f"the leader refused this node: {why}"))
            self.told.set()

    def on_cause(self, _told: object) -> None:
        """A worker reported a cause or was lost: the run is over, the main thread decides."""
        if self.run is not None:
            self.run.ended.set()

    # From people and from the starter

    def handle_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP interrupt the run."""

        def handle(number: int, _frame: object) -> None:
            name = signal.Signals(number).name
            threading.Thread(
                target=self.interrupt, args=(f"interrupted by {name}",), daemon=True
            ).start()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, handle)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def interrupt(self, reason: str, kind: str = "interrupt") -> None:
        """End the run; once more: hurry."""
        run = self.run
        if run is None:
            self._early_interrupts += 1
            self.early.set()
            return
        if run.ended.is_set():
            # What is waited for now are others; a second interrupt waits for nobody.
            self.told.set()
            if run.leader:
                run.leader.hurry()
            if run.link:
                run.link.hurry()
        run.interrupts += 1
        if run.cause is None:
            run.add_cause(
                run.cause_of(
                    kind, "interrupted", reason, hint="What was collected is in the run directory."
                )
            )

    def watch_starter(self) -> None:
        """End the run when standard input closes; obey the words that come over it."""
        threading.Thread(target=self._read_starter, name="starter", daemon=True).start()

    def _read_starter(self) -> None:
        descriptor = sys.stdin.fileno()
        while True:
            try:
                words = os.read(descriptor, 4096)
            except OSError:
                words = b""
            if not words:
                self.interrupt("the runner is gone", "runner")
                return
            for line in words.decode("utf-8", "replace").splitlines():
                self.obey(line)

    def obey(self, line: str) -> None:
        """A word of the starter: ``stop``, or ``lost I HOW`` for a node program that ended."""
        word, run = contract.heard(line), self.run
        if word == contract.STOP:
            self.interrupt("interrupted by the runner")
        elif run is None and isinstance(word, contract.Lost):
            self._early_words.append(line)
            self.hopeless = f"node {word.node} is lost: {word.how}"
        elif isinstance(word, contract.Lost) and run is not None:
            self._lose(run, word)

    def _lose(self, run: NodeRun, word: contract.Lost) -> None:
        """End the run for a node program that left no record, if nothing else ended it."""
        if run.cause is not None or word.node >= len(run.plan.nodes):
            return
        node = run.plan.nodes[word.node]
        if run.leader:
            run.leader.give_up(node.index)
        reason = f"node {node.index} is lost: its program {word.how}"
        hint = f"Look at {node.name}/node.log."
        cause = run.cause_of("lost", "infra", reason, node=node, process="node", hint=hint)
        run.add_cause(cause)
        self.told.set()
