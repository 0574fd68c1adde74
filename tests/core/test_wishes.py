"""What a command line asks for, parsed once: one frozen value, or what is wrong."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from steps.core.errors import UsageError
from steps.core.node.start import add_start_arguments
from steps.core.node.wishes import Wishes, wishes_of
from steps.core.plan.cluster import Rehearsal


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_start_arguments(parser)
    return parser.parse_args(words)


def test_nothing_asked_is_nothing_wished():
    assert wishes_of(parsed()) == Wishes()


def test_every_option_reaches_its_field():
    faults = ("crash@1:load", "kill9@0.node:bench")
    words = ["--case", "c.yaml", "--node-index", "0", "--run-dir", "r", "--rehearse", "--bound"]
    words += ["--load-seconds", "0", "--bench", "none", "--timeout", "load=60", "--run-id", "x"]
    words += [word for fault in faults for word in ("--fault", fault)]
    asked = wishes_of(parsed(*words, "--network", "71.9", "--output", "events"))
    assert (asked.case, asked.node_index, asked.run_dir, asked.run) == ("c.yaml", 0, Path("r"), "x")
    assert asked.rehearsal == asked.stand_ins == Rehearsal(0.0, faults)
    assert [signal.text for signal in asked.signals] == ["kill9@0.node:bench"]
    assert (asked.driver, asked.timeouts, asked.network) == ("none", {"load": 60.0}, "71.9")
    assert (asked.bound, asked.output) == (True, "events")
    assert asked.node_words() == ("--bench", "none", "--timeout", "load=60")
    with pytest.raises(FrozenInstanceError):
        asked.case = "another"  # type: ignore[misc]


def test_budgets_of_any_size_travel_to_the_nodes_as_they_are():
    asked = wishes_of(parsed("--timeout", "load=1234567.25"))
    one = wishes_of(parsed("--only", "one of them"))
    assert wishes_of(parsed(*one.node_words())).only == one.only == "one of them"
    assert wishes_of(parsed(*asked.node_words())).timeouts == asked.timeouts == {"load": 1234567.25}


def test_faults_without_stand_ins_are_refused_unless_the_case_may_bring_them():
    given = parsed("--fault", "crash@1:load")
    with pytest.raises(UsageError, match="--fault works in a rehearsal only"):
        wishes_of(given)
    asked = wishes_of(given, case_may_rehearse=True)
    assert asked.rehearsal is None
    assert asked.rehearsed().rehearsal == Rehearsal(1.0, ("crash@1:load",))
