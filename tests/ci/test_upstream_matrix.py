"""Upstream's matrix files become ours, once, as a file to review."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from ci.nightly import matrix
from steps.core.plan.clusters import ROOT

NIGHTLY = """\
a2:
  multi_node:
    test_config:
      - name: multi-node-Qwen3.5-dp
        config_file_path: Qwen.yaml
        config_base_path: cases/Qwen
        size: 2
  single_node:
    test_config:
      - name: test_custom_op
        os: linux-aarch64-a2b3-4
        tests: "tests/e2e/ops\\n\\u2028x: 1"
      - name: qwen3-32b-int8
        os: linux-aarch64-a2b3-4
        config_file_path: Single.yaml
        testcase_timeout: 240
  accuracy:
    nightly:
      - {name: accuracy-group-1, os: linux-aarch64-a2b3-1, model_list: [Qwen3-8B]}
a3:
  double_node:
    test_config:
      - {name: two, config_file_path: Qwen.yaml, config_base_path: cases/Qwen, size: 2}
  multi_node:
    test_config:
      - {name: four, config_file_path: Four.yaml, config_base_path: cases/Qwen, size: 4}
  multi_card:
a3-560t:
  double_node:
    test_config:
      - {name: two, config_file_path: Qwen.yaml, config_base_path: cases/Qwen, size: 2}
"""
WEEKLY = """\
a3:
  double_node:
    test_config:
      - {name: two, config_file_path: Gone.yaml, config_base_path: cases/Qwen, size: 2}
a3-560t:
  a5:
    single_node:
      test_config:
        - {name: GLM5_1_A5, os: linux-aarch64-a5-8, config_file_path: Single.yaml}
310p:
  single_node:
    test_config:
      - {name: small.310p, os: linux-aarch64-310p-4, config_file_path: Single.yaml}
"""


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of upstream with its matrix files and cases."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nightly_config.yaml").write_text(NIGHTLY)
    (tmp_path / "weekly_config.yaml").write_text(WEEKLY)
    folder = tmp_path / "up" / "cases" / "Qwen"
    folder.mkdir(parents=True)
    for name, nodes in (("Qwen", 2), ("Four", 4), ("Single", 1)):
        (folder / f"{name}.yaml").write_text(f"num_nodes: {nodes}\n")
    return tmp_path


def ours(*arguments: str) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as out:
        code = matrix.main(list(arguments))
    return code, out.getvalue()


def test_both_files_become_one_of_ours(upstream: Path) -> None:
    code, text = ours(
        "--from-upstream", "nightly_config.yaml", "weekly_config.yaml", "--checkout", "up"
    )
    assert code == 0
    data = yaml.safe_load(text)
    assert list(data) == ["max_parallel", "a2", "a3", "a3-560t", "a5", "310p"]
    assert data["max_parallel"] == {"a2": 3, "a3": 2, "a3-560t": 4, "a5": 9, "310p": 9}
    assert data["a2"][0] == {
        "name": "multi-node-Qwen3.5-dp",
        "case": "up/cases/Qwen/Qwen.yaml",
        "size": 2,
        "profile": "a2",
        "runner": ["self-hosted", "linux", "npu-a2"],
        "cadence": "nightly",
        "owner": "upstream",
    }
    assert data["a2"][1]["minutes"] == 240 and data["a2"][1]["size"] == 1
    assert data["a2"][1]["case"] == "up/cases/Qwen/Single.yaml"
    assert [(e["name"], e["size"], e["cadence"]) for e in data["a3"]] == [
        ("four", 4, "nightly"), ("two", 2, "nightly"), ("two-weekly", 2, "weekly"),
    ]  # fmt: skip
    assert data["a3"][2]["minutes"] == 600
    assert [e["name"] for e in data["a3-560t"]] == ["two-a3-560t"]
    assert [e["name"] for e in data["a5"]] == ["GLM5_1_A5"]
    notes = [line for line in text.splitlines() if "#" in line]
    for words in (
        "test_custom_op", "accuracy-group-1", "no such file", "it stands under a3-560t",
        "linux-aarch64-a2b3-4", "named two",
    ):  # fmt: skip
        assert any(words in line for line in notes), words


def test_what_is_reviewed_is_a_matrix(upstream: Path) -> None:
    _, text = ours("--from-upstream", "nightly_config.yaml", "--checkout", "up")
    (upstream / "ours.yaml").write_text(text)
    found = matrix.load(upstream / "ours.yaml")
    assert found.socs == ("a2", "a3", "a3-560t")
    code, text = ours("--file", "ours.yaml", "--format", "json", "--soc", "a2")
    assert code == 0 and '"minutes":240' in text and '"minutes":480' in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("size: 2", "size: two", "nightly_config.yaml:7:"),
        ("name: two", "name: 'two words'", "two words"),
        ("config_file_path: Qwen.yaml", "config_file_path: [x]", "must be of string type"),
        ("  multi_card:", "  multi_cart:", "multi_cart"),
        ("size: 4}", "sise: 4}", "size"),
        (NIGHTLY, "- a\n", "expected a mapping"),
        (NIGHTLY, "a2: [x]\n", "nightly_config.yaml:1"),
        (NIGHTLY, "a2: {single_node: {test_config: {a: 1}}}\n", "test_config"),
        (NIGHTLY, "A 2: {}\n", "A 2"),
    ],
)
def test_a_mistake_is_found_at_its_line(
    upstream: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, expected: str
) -> None:
    assert old in NIGHTLY
    (upstream / "nightly_config.yaml").write_text(NIGHTLY.replace(old, new, 1))
    code, text = ours("--from-upstream", "nightly_config.yaml")
    assert (code, text) == (2, "")
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["'/'", "'**'", "'..'", "x" * 5000, '"a\\nb: 1"'])
@pytest.mark.parametrize(
    ("key", "old"), [("config_file_path", "Single.yaml"), ("config_base_path", "cases/Qwen")]
)
def test_an_odd_path_is_a_doubt(upstream: Path, odd: str, key: str, old: str) -> None:
    text = NIGHTLY.replace(f"{key}: {old}", f"{key}: {odd}")
    (upstream / "nightly_config.yaml").write_text(text)
    code, made = ours("--from-upstream", "nightly_config.yaml", "--checkout", "up")
    assert code == 0
    assert len(yaml.safe_load(made)["a2"]) == 2 and "checkout" in made


def test_a_file_of_another_name_needs_its_cadence(
    upstream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (upstream / "own.yaml").write_text(WEEKLY)
    assert ours("--from-upstream", "own.yaml")[0] == 2
    assert "--cadence" in capsys.readouterr().err
    code, text = ours("--from-upstream", "own.yaml", "--cadence", "manual")
    assert code == 0 and yaml.safe_load(text)["a3"][0]["cadence"] == "manual"
    assert ours("--from-upstream", "nowhere_nightly.yaml")[0] == 2


def test_the_profile_of_each_soc_is_there() -> None:
    for soc in ("a2", "a3", "a3-560t", "a5", "310p"):
        assert (ROOT / "configs" / "clusters" / f"{soc}.yaml").is_file()
