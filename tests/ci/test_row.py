"""The cases of one file, one fleet after the other: a directory, a verdict and a suite each."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ci import replay, row
from ci.run import main
from steps.core.errors import InfraError
from steps.core.node.wishes import Wishes
from steps.core.record.rundir import read_json, write_json
from tests.core.test_several import ENCODERS

FILE = textwrap.dedent(
    """\
    _cmd: &cmd ["--port", "$SERVER_PORT", "--tensor-parallel-size", "2"]
    test_cases:
      - name: "first one"
        model: demo/tiny
        envs: {SERVER_PORT: "DEFAULT_PORT"}
        server_cmd: *cmd
        benchmarks:
          perf:
            {case_type: performance, dataset_path: demo/data, request_conf: vllm_api_stream_chat,
             dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf, num_prompts: 4, max_out_len: 8,
             batch_size: 2, baseline: 1}
      - name: second
        model: demo/tiny
        envs: {}
        server_cmd: *cmd
        test_content: [chat_completion]
        prompts: [a, b]
    """
)


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(FILE, encoding="utf-8")
    return file


def suites(file: Path) -> dict[str, list[str]]:
    """The suites of a JUnit file: what each test case became."""
    return {
        suite.get("name", ""): [case[0].tag if len(case) else "" for case in suite]
        for suite in ElementTree.parse(file).getroot()
    }


def test_each_case_has_a_fleet_a_directory_and_a_suite(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, kept = tmp_path / "run", tmp_path / "all.xml"
    words = ["--rehearse", "--load-seconds", "0", "--run-dir", str(base), "--junit", str(kept)]
    assert main([str(path), *words]) == 0
    assert "2 of 2 cases passed" in capsys.readouterr().out
    for folder, name in (("first-one", "first one"), ("second", "second")):
        told = read_json(base / folder / "verdict.json")
        assert (told["case"], told["verdict"]) == (name, "pass")
        assert read_json(base / folder / "plan.json")["only"] == name
    checks = [c["name"] for c in read_json(base / "second" / "verdict.json")["checks"]]
    assert sum("chat_completion" in name for name in checks) == 2
    assert list(suites(base / "junit.xml")) == list(suites(kept)) == ["first one", "second"]
    told = read_json(base / "verdict.json")
    assert (told["verdict"], told["exit_code"]) == ("pass", 0)
    assert [entry["directory"] for entry in told["cases"]] == ["first-one", "second"]


def test_one_of_them_is_replayed(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "run"
    words = ["--rehearse", "--load-seconds", "0", "--bench", "none", "--run-dir", str(base)]
    assert main([str(path), *words]) == 0
    assert replay.main([str(base)]) == 2
    assert "name the directory of one in it: first-one, second" in capsys.readouterr().err
    assert replay.main([str(base / "second"), "--run-dir", str(tmp_path / "again")]) == 0
    assert "The plan is the same" in capsys.readouterr().out


def test_one_of_them_is_a_run_like_any_other(path: Path, tmp_path: Path) -> None:
    base = tmp_path / "run"
    words = ["--only", "second", "--rehearse", "--load-seconds", "0", "--run-dir", str(base)]
    assert main([str(path), *words, "--fault", "crash@0:load"]) == 1
    assert read_json(base / "verdict.json")["case"] == "second"
    assert main([str(path), "--only", "third", "--rehearse"]) == 2


def test_encoders_are_rehearsed(tmp_path: Path) -> None:
    file, base = tmp_path / "encoders.yaml", tmp_path / "run"
    file.write_text(ENCODERS, encoding="utf-8")
    words = [str(file), "--rehearse", "--load-seconds", "0", "--run-dir", str(base)]
    assert main(words) == 0
    told = read_json(base / "verdict.json")
    traffic = {c["name"]: c["status"] for c in told["checks"] if c["name"].startswith("traffic")}
    assert sorted(traffic.values()) == ["pass", "skipped"]  # nobody sent a picture
    words[-1] = str(tmp_path / "fault")
    assert main([*words, "--fault", "crash@0.server-0:load"]) == 1
    assert read_json(tmp_path / "fault" / "verdict.json")["cause"]["process"] == "server-0"


def test_an_encoder_is_asked_for_pictures(tmp_path: Path) -> None:
    file, base = tmp_path / "encoders.yaml", tmp_path / "run"
    picture = "data:image/png;base64,iVBORw0KGgo="
    part = f"{{type: image_url, image_url: {{url: '{picture}'}}}}"
    asked = f"mm_request: {{messages: [{{role: user, content: [{part}]}}]}}"
    file.write_text(ENCODERS.replace("test_content:", f"test_content: [image]\n    {asked}"))
    assert main([str(file), "--rehearse", "--load-seconds", "0", "--run-dir", str(base)]) == 0
    told = read_json(base / "verdict.json")
    traffic = [c["status"] for c in told["checks"] if c["name"].startswith("traffic")]
    assert traffic == ["pass", "pass"]


def test_a_wrong_case_costs_nothing(path: Path, tmp_path: Path) -> None:
    path.write_text(FILE.replace("prompts: [a, b]", "prompts: 5"), encoding="utf-8")
    base = tmp_path / "run"
    assert main([str(path), "--rehearse", "--run-dir", str(base)]) == 2
    assert read_json(base / "verdict.json")["verdict"] == "config"
    assert not (base / "first-one").exists()


def test_latest_is_the_whole_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path.write_text(FILE.replace("[a, b]", "[a]"), encoding="utf-8")
    assert main([str(path), "--rehearse", "--load-seconds", "0", "--bench", "none"]) == 0
    assert len(read_json(tmp_path / "runs" / "latest" / "verdict.json")["cases"]) == 2


def pretend(*codes: int) -> tuple[list[str], Callable[[Wishes, Path], int]]:
    """What carries out a case, ending with one code after the other."""
    left, seen = list(codes), []

    def one(asked: Wishes, _path: Path) -> int:
        assert asked.run_dir is not None
        seen.append(asked.only)
        asked.run_dir.mkdir()
        code = left.pop(0)
        if code == 3:
            raise InfraError("no disk")
        write_json(asked.run_dir / "verdict.json", {"verdict": f"ends {code}", "run": "r"})
        return code

    return seen, one


@pytest.mark.parametrize(
    ("codes", "code", "ran"),
    [
        ((0, 0, 0), 0, 3),
        ((0, 1, 0), 1, 3),
        ((4, 1, 0), 1, 3),
        ((0, 4, 0), 4, 3),
        ((1, 2, 0), 2, 2),
        ((1, 130, 0), 130, 2),
    ],
)
def test_the_worst_counts_and_a_product_ends_no_row(
    codes: tuple[int, ...], code: int, ran: int, tmp_path: Path
) -> None:
    seen, one = pretend(*codes)
    base = tmp_path / "run"
    assert row.run(Wishes(run_dir=base), Path("f.yaml"), ["a", "b", "c"], one) == code
    assert seen == ["a", "b", "c"][:ran]
    told = read_json(base / "verdict.json")
    assert told["exit_code"] == code
    assert [entry["exit_code"] for entry in told["cases"]] == [*codes[:ran], *[None] * (3 - ran)]
    if ran < 3:
        assert suites(base / "junit.xml") == {"c": ["skipped"]}
        assert "not run" in (base / "summary.md").read_text(encoding="utf-8")


def test_what_ends_the_row_is_told_and_summed_up(tmp_path: Path) -> None:
    _, one = pretend(0, 3, 0)
    with pytest.raises(InfraError):
        row.run(Wishes(run_dir=tmp_path / "run"), Path("f.yaml"), ["a", "b", "c"], one)
    told = read_json(tmp_path / "run" / "verdict.json")
    assert [entry["verdict"] for entry in told["cases"]] == ["ends 0", "no-verdict", "not run"]
    assert told["exit_code"] == 3


def test_names_that_look_alike_share_no_directory(tmp_path: Path) -> None:
    _, one = pretend(0, 0, 0, 0)
    row.run(Wishes(run_dir=tmp_path / "run"), Path("f.yaml"), ["a b", "a/b", "../..", "!"], one)
    told = read_json(tmp_path / "run" / "verdict.json")
    folders = [entry["directory"] for entry in told["cases"]]
    assert folders == ["a-b", "a-b-2", "case", "case-2"]
