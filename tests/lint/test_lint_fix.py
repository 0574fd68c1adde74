"""What steps.fix repairs, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.fix import fixed, run
from steps.lint.examples import BASES, text_of
from steps.lint.registry import Example
from steps.validate import validate
from tests.lint.edits import parallel, routing, split

SEQS = "      --max-num-seqs 32\n"
MODEL_LEN = '- --max-model-len\n      - "8192"'
BROKEN = [
    ("MN102", parallel(("--max-num-seqs", "--max-num-seq"))),
    ("MN102", routing(("- --max-model-len", "- --max-model-le"))),
    ("MN103", routing((MODEL_LEN, "- --max-model-len 8192"))),
    ("MN103", parallel(("--tensor-parallel-size 8\n", "--tensor-parallel-size 8 \\\n"))),
    ("MN106", parallel(("--enable-expert-parallel", "--enable-expert-parallel true"))),
    ("MN108", parallel((SEQS, SEQS + SEQS))),
    ("MN108", routing((MODEL_LEN, f"{MODEL_LEN}\n      {MODEL_LEN}"))),
    ("MN110", split(('{"enable_cpu_binding": true}', '{"enable_cpu_binding": True}'))),
]


@pytest.mark.parametrize(("rule", "example"), BROKEN)
def test_a_repaired_case_is_the_base_again(rule: str, example: Example) -> None:
    text, rules = fixed(text_of(example))
    assert set(rules) == {rule}
    assert text == BASES[example.base]


@pytest.mark.parametrize("base", BASES)
def test_a_right_case_stays_as_it_is(base: str) -> None:
    assert fixed(BASES[base]) == (BASES[base], [])


def test_a_switch_that_is_off_becomes_its_negative() -> None:
    example = parallel(("--enable-expert-parallel", "--enable-prefix-caching false"))
    text, _ = fixed(text_of(example))
    assert "--no-enable-prefix-caching\n" in text
    assert "false" not in text


@pytest.mark.parametrize(
    "example",
    [
        parallel((SEQS, SEQS + SEQS.replace("32", "64"))),
        parallel(("--max-num-seqs", "--max-num-seqz")),
        parallel(("start-rank 2", "start-rank 1")),
    ],
)
def test_what_could_be_meant_in_two_ways_is_left_alone(example: Example) -> None:
    text = text_of(example)
    assert fixed(text) == (text, [])


def test_comments_and_layout_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "case.yaml"
    text = text_of(
        parallel(("--max-num-seqs", "--max-num-seq"), ("num_nodes: 2", "num_nodes: 2 # two"))
    )
    path.write_text(text, encoding="utf-8")
    assert run([str(path)], dry_run=True) == 0
    assert path.read_text(encoding="utf-8") == text
    assert run([str(path)]) == 0
    after = path.read_text(encoding="utf-8")
    assert "num_nodes: 2 # two" in after
    assert after == text.replace("--max-num-seq ", "--max-num-seqs ")
    out = capsys.readouterr().out
    assert "-      --max-num-seq 32" in out
    assert "+      --max-num-seqs 32" in out
    assert validate([path]) == []


def test_a_file_that_is_no_case_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text("a: [", encoding="utf-8")
    assert run([str(path), str(tmp_path / "none.yaml")]) == 2
    assert str(path) in capsys.readouterr().err
