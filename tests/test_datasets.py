"""The generated data set is GSM8K's format, true, and the same for the same seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.real import datasets


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(seed=st.integers(), count=st.integers(1, 1000))
def test_every_answer_is_true(seed, count):
    asked = list(datasets.questions(seed, count))
    assert len(asked) == count
    for item in asked:
        a, sign, b = re.fullmatch(r"What is (\d+) ([+-]) (\d+)\?", item["question"]).groups()
        result = int(a) + int(b) if sign == "+" else int(a) - int(b)
        assert item["answer"].splitlines()[-1] == f"#### {result}"
        assert result >= 0
    assert len({item["question"] for item in asked}) == min(count, 420)


def test_both_files_and_the_same_bytes_for_the_same_seed(tmp_path):
    first = datasets.write_arithmetic(tmp_path / "a", seed=7, test=5, train=2)
    again = datasets.write_arithmetic(tmp_path / "b", seed=7, test=5, train=2)
    other = datasets.write_arithmetic(tmp_path / "c", seed=8, test=5, train=2)
    assert [len(lines(first / file)) for file in ("test.jsonl", "train.jsonl")] == [5, 2]
    assert (first / "test.jsonl").read_bytes() == (again / "test.jsonl").read_bytes()
    assert (first / "test.jsonl").read_bytes() != (other / "test.jsonl").read_bytes()
    questions = [
        item["question"] for file in ("test.jsonl", "train.jsonl") for item in lines(first / file)
    ]
    assert len(set(questions)) == 7


def test_an_empty_file_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="train=0"):
        datasets.write_arithmetic(tmp_path, train=0)
    assert datasets.main([str(tmp_path / "d"), "--test", "0"]) == 2
    assert "test=0" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_command_line(tmp_path, capsys):
    assert datasets.main([str(tmp_path / "d"), "--test", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'd'}\n"
    assert len(lines(tmp_path / "d" / "test.jsonl")) == 3
    (tmp_path / "file").write_text("")
    assert datasets.main([str(tmp_path / "file" / "d")]) == 3
