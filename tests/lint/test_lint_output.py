"""Formats, excerpts, ignores and the command line of steps.validate."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lxml import etree

from steps import validate as validation
from steps.core import redaction
from steps.core.case.excerpt import render, render_all, summary
from steps.core.case.fields import FIELDS
from steps.core.errors import Place, Problem, Severity, sort_problems
from steps.core.system import ancestry
from steps.lint import formats, jsonschema
from steps.lint.examples import BASES, PARALLEL, text_of
from steps.validate import main, validate
from tests.core.waiting import alive, eventually
from tests.lint.edits import parallel

RPC = ("--data-parallel-rpc-port 13389\n", "--data-parallel-rpc-port 13390\n")
TWICE = ("--max-num-seqs 32\n", "--max-num-seqs 32\n      --max-num-seqs 64\n")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "odd, name: 100%.yaml"
    path.write_text(text_of(parallel(RPC)), encoding="utf-8")
    return path


def test_text_shows_both_lines_and_carets(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(broken)]) == 2
    out = capsys.readouterr().out
    assert (
        f"{broken}:30:7: error MN203: node 1 joins its group at rpc port 13389, node 0 at 13390"
        in out
    )
    assert "  30 |       --data-parallel-rpc-port 13389\n     |       ^\n" in out
    assert "  17 |       --data-parallel-rpc-port 13390\n     |       ^\n" in out
    assert "= All members of a group use one rpc port." in out
    assert out.splitlines()[-1].startswith("1 file: 1 error")


def test_json_has_every_field(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--format", "json", str(broken)]) == 2
    data = json.loads(capsys.readouterr().out)
    first = next(p for p in data if p["rule"] == "MN203")
    assert (first["file"], first["line"], first["column"]) == (str(broken), 30, 7)
    assert first["severity"] == "error"
    assert [place["line"] for place in first["related"]] == [17]


def test_github_escapes_what_would_end_a_command(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--format", "github", str(broken)]) == 2
    line = capsys.readouterr().out.splitlines()[0]
    match = re.fullmatch(r"::error file=([^,]+),line=30,col=7,title=MN203::(.*)", line)
    assert match
    assert "%3A" in match[1] and "%25" in match[1] and "%2C" in match[1]
    assert "%0A" in match[2]


def test_sarif_names_rules_and_both_places(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--format", "sarif", str(broken)]) == 2
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        region = result["locations"][0]["physicalLocation"]["region"]
        assert region["startLine"] >= 1 and region["startColumn"] >= 1
    twice = next(result for result in run["results"] if result["ruleId"] == "MN203")
    assert twice["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == 17


def test_junit_fails_on_errors_and_shows_the_rest(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(PARALLEL, encoding="utf-8")
    assert main(["--format", "junit", str(broken), str(good)]) == 2
    root = ElementTree.fromstring(capsys.readouterr().out)
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failing, passing = list(suite)
    assert failing.find("failure") is not None
    assert passing.find("failure") is None


@pytest.mark.parametrize("style", formats.FORMATS)
def test_no_problem_is_a_valid_document_too(style: str) -> None:
    text = formats.FORMATS[style]([], ["a.yaml"])
    if style in ("json", "sarif"):
        json.loads(text)
    elif style == "junit":
        ElementTree.fromstring(text)
    else:
        assert text == ""


def test_warnings_alone_pass_unless_strict(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text_of(parallel(("--max-num-seqs", "--max-num-seq"))), encoding="utf-8")
    assert main([str(path)]) == 0
    assert main(["--strict", str(path)]) == 2


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--explain", "mn108"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("MN108: Flag given twice (warning)")
    assert "```diff" in out
    assert main(["--explain", "MN998"]) == 2


def test_a_file_that_is_not_there_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "MN002" in capsys.readouterr().out


def test_a_directory_stands_for_its_cases(tmp_path: Path) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "x.yaml").write_text("not: a case", encoding="utf-8")
    (tmp_path / "a.yaml").write_text(PARALLEL, encoding="utf-8")
    assert main([str(tmp_path)]) == 0


def test_excerpt_of_a_long_line_shows_the_place() -> None:
    line = "x" * 300 + "HERE" + "y" * 300
    problem = Problem("MN101", "m", Place("f", 1, 301), severity=Severity.WARNING)
    text = render(problem, lines=lambda file: (line,))
    _, shown, caret = text.splitlines()
    assert shown[caret.index("^") :].startswith("HERE")
    assert len(shown) < 140
    assert summary([problem, problem]) == "2 warnings"


def _many(count: int) -> list[Problem]:
    return [
        Problem("MN101", f"node {at} has no '--odd'", Place("f", at + 1), "Remove it.")
        for at in range(count)
    ]


def test_findings_of_one_kind_are_folded_for_people() -> None:
    other = Problem("MN101", "node 3 has no '--even'", Place("f", 4))
    text = render_all(sort_problems([*_many(12), other]), lines=lambda file: ())
    assert text.count("--odd") == 1 and text.count("--even") == 1
    assert "f:1:1: error MN101: node 0 has no '--odd'\n  = Remove it.\n" in text
    assert "  ... and 11 more: lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and so on" in text
    assert text.endswith("13 errors\n")


def test_two_of_a_kind_and_those_of_two_files_are_shown_whole() -> None:
    two = [*_many(2), *(dataclasses.replace(p, place=Place("g")) for p in _many(2))]
    text = render_all(two, lines=lambda file: ())
    assert text.count("--odd") == 4 and "more" not in text


IGNORES = [
    ("batch_size: 128", "batch_size: 200  # multinode: ignore[MN705] the queue too"),
    ("    batch_size: 128", "    # multinode: ignore[MN705] the queue too\n    batch_size: 200"),
    ("batch_size: 128", "batch_size: 200 # multinode: ignore[MN706, MN705] both"),
    ("num_nodes: 2", "lint: {ignore: {MN705: the queue too}}\nnum_nodes: 2"),
]


@pytest.mark.parametrize(("old", "new"), IGNORES)
def test_an_ignored_finding_is_not_reported(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    edits = [(old, new)]
    if "batch_size: 200" not in new:
        edits.append(("batch_size: 128", "batch_size: 200"))
    path.write_text(text_of(parallel(*edits)), encoding="utf-8")
    rules = [problem.rule for problem in validate([path])]
    assert "MN705" not in rules
    assert rules == (["MN199"] if "MN706" in new else [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_nodes: 2", "num_nodes: 2  # multinode: ignore[MN705] nothing here"),
        ("num_nodes: 2", "lint: {ignore: {MN705: nothing here}}\nnum_nodes: 2"),
        ("batch_size: 128", "batch_size: 200  # multinode: ignore[MN705]"),
    ],
)
def test_an_ignore_without_effect_or_reason_is_a_warning(
    old: str, new: str, tmp_path: Path
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text_of(parallel((old, new))), encoding="utf-8")
    problems = validate([path])
    assert [(p.rule, p.severity) for p in problems] == [("MN199", Severity.WARNING)]


def test_an_ignore_on_the_commands_line_covers_the_command(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    key = ("server_cmd: >", "server_cmd: >  # multinode: ignore[MN108] shows which one wins")
    path.write_text(text_of(parallel(key, TWICE)), encoding="utf-8")
    assert "MN108" not in {problem.rule for problem in validate([path])}


def test_the_editors_schema_is_fresh_and_complete() -> None:
    fresh = jsonschema.FILE.read_text(encoding="utf-8") == jsonschema.text()
    assert fresh, f"{jsonschema.FILE} is old: run `python -m steps.lint.jsonschema`"
    made = jsonschema.schema()["definitions"]
    for dialect, fields in FIELDS.items():
        assert set(made[dialect]["properties"]) == set(fields)


VALUES = ["", "0", "-1", "null", "[]", "{}", '"x"', "1.5", "true", "'{}'", "'[1]'", "'{\"a\": []}'"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("seed", range(6))
def test_no_text_makes_a_rule_fall_over(base: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{base}{seed}")
    path = tmp_path / "case.yaml"
    for _ in range(25):
        lines = BASES[base].splitlines()
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(lines))
            words = list(re.finditer(r'"[^"]*"|[\w./$-]+', lines[at]))
            if rng.random() < 0.3 or not words:
                del lines[at]
            else:
                word = rng.choice(words)
                new = rng.choice(VALUES)
                lines[at] = lines[at][: word.start()] + new + lines[at][word.end() :]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for problem in validate([path]):
            assert problem.message
            assert problem.place.line >= 1


def test_junit_is_what_jenkins_reads(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xsd = Path(__file__).parents[1] / "data" / "junit" / "jenkins-junit.xsd"
    schema = etree.XMLSchema(etree.parse(str(xsd)))
    for files in ([str(broken)], [str(broken), str(broken.with_name("absent.yaml"))]):
        main(["--format", "junit", *files])
        schema.assertValid(etree.fromstring(capsys.readouterr().out.encode()))


def test_sarif_names_files_as_uris(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = broken.with_name("50% of it.yaml")
    broken.rename(odd)
    main(["--format", "sarif", str(odd)])
    found = json.loads(capsys.readouterr().out)["runs"][0]["results"][0]["locations"][0]
    assert found["physicalLocation"]["artifactLocation"]["uri"].endswith("/50%25%20of%20it.yaml")


def test_many_files_are_validated_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PARALLEL
    for number in range(6):
        wrong = f"{text}\nmy_api_key_{number}: Zq9{number}xkcd77kk\n"
        (tmp_path / f"{number}.yaml").write_text(wrong if number else text)
    paths = sorted(tmp_path.glob("*.yaml"))
    monkeypatch.setattr(validation.os, "cpu_count", lambda: 1)
    alone = validation.validate(paths)
    assert len(alone) >= 5
    redaction.here.cache_clear()
    monkeypatch.setattr(validation, "SHARE", 2)
    monkeypatch.setattr(validation.os, "cpu_count", lambda: 2)
    assert validation.validate(paths) == alone
    assert "xkcd" not in redaction.here().text("x Zq95xkcd77kk y"), "the helpers learned it"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux ends them")
def test_helpers_end_with_a_killed_command(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(PARALLEL)
    argv = [sys.executable, "-m", "steps.validate", str(tmp_path)]
    command = subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True)
    helpers: list[int] = []

    def started() -> bool:
        helpers[:] = ancestry.children(command.pid)
        return len(helpers) > 1 or command.poll() is not None

    try:
        eventually(started, 60)
    finally:
        command.kill()
        command.wait()
    if (os.cpu_count() or 1) > 1:
        assert len(helpers) > 1
    eventually(lambda: not any(map(alive, helpers)), 20)
