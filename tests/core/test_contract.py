"""A backend and a node program agree: options, words, and the cause that an end is."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8s import pod
from steps import node
from steps.core.node import contract
from steps.core.node.contract import STOP, Lost, Start, heard


def parsed(argv: list[str]) -> dict[str, object]:
    assert argv[1:3] == ["-m", "steps.node"]
    return vars(node.main.parser().parse_args(argv[3:]))


def test_a_node_program_takes_what_a_backend_gives() -> None:
    start = Start(2, "/r", "/t", case="/c", cluster="/j", run="x", more=("--bench", "none"))
    found = parsed(start.argv("python3"))
    expected = {
        "case": "/c",
        "cluster": "/j",
        "node_index": 2,
        "run_dir": "/r",
        "run_id": "x",
        "token_file": "/t",
        "bound": True,
        "output": "events",
        "bench": "none",
    }
    assert expected.items() <= found.items()
    assert parsed(Start(0, "/r", plan="/p").argv("python3"))["plan"] == "/p"


def test_a_pod_which_imports_nothing_of_ours_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod, "WORK", tmp_path)
    main = pod.Main.__new__(pod.Main)
    main.index = 1
    cluster = {"nodes": [{"address": "a"}, {"address": "b"}], "known": {}}
    arguments = ["--output", "events", "--bench", "none"]
    main.start = {"run": "x", "cluster": cluster, "known": [], "arguments": arguments}
    start = Start(
        1,
        str(pod.RUN),
        str(pod.TOKEN),
        case=str(pod.BUNDLE / "0" / "case.yaml"),
        cluster=str(tmp_path / "cluster.json"),
        run="x",
        more=("--bench", "none"),
    )
    assert parsed(main._command()) == parsed(start.argv("python3"))
    assert STOP in (pod.__doc__ or "") and f"``{Lost('I', 'HOW')}``" in (pod.__doc__ or "")  # type: ignore[arg-type]


@pytest.mark.parametrize("code, how", [(3, "exited with code 3"), (-9, "was killed by signal 9")])
def test_the_word_of_a_lost_program_says_how_it_ended(code: int, how: str) -> None:
    cause = contract.lost(1, contract.ended(code), 0.0, at=5.0)
    assert (cause.kind, cause.verdict, cause.node, cause.role) == ("lost", "infra", 1, "worker")
    assert (cause.reason, cause.seconds) == (f"the node program {how} and left no record", 5.0)
    assert cause.log == "node-1/node.log"
    assert heard(str(Lost.of(cause))) == Lost(1, f"{how} and left no record")


def test_a_cause_of_many_lines_is_one_word_and_one_of_no_node_has_no_log() -> None:
    cause = contract.lost(None, "the API\nserver is away", 0.0)
    assert (cause.role, cause.process, cause.log) == ("", "", "")
    assert "\n" not in str(Lost.of(cause))


@pytest.mark.parametrize("line", ["", "lost", "lost x how", "lost -1 how", "lost ² how", "stopp"])
def test_what_is_no_word_says_nothing(line: str) -> None:
    assert heard(line) is None
    assert heard(f"{STOP}\n") == STOP
