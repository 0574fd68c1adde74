"""Hostile files end soon, with few words and little memory; so do the commands that read them.

``python -m tests.fuzz`` does the same at length: every file of ``tests.fuzz.hostile`` through
every command, and 20,000 mutated cases.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from steps import fix
from steps.core.case.build import load_case
from steps.core.case.source import load_yaml
from steps.core.errors import CaseError, Problem, Severity
from steps.core.plan import profile, resolver
from steps.core.plan.variables import TooLong, fill
from steps.core.vllm import commandline
from steps.core.vllm.commandline import integer, parse_json, whole
from steps.lint.examples import PARALLEL
from steps.validate import neutral_cluster, validate, validate_one
from tests.fuzz import __main__ as fuzz
from tests.fuzz import hostile, limits, mutate

#: File -> a rule of which a problem says these words; the first ten were seen in the field.
WORDS = {
    "empty word": ("MN106", "'' belongs to no flag"),
    "big number": ("MN104", "expected a whole number"),
    "big nnodes": ("MN104", "expected a whole number of at most 1,000,000,000"),
    "big nnodes, few nodes": ("MN210", "expected 0 to 99999999"),
    "set as a key": ("MN001", "type tag:yaml.org,2002:set"),
    "deep json": ("MN110", "nested too deeply"),
    "big data parallel": ("MN202", "says 100000000"),
    "big group": ("MN201", "nobody has ranks 1-99999999"),
    "merge chain": ("MN001", "aliases and merge keys multiply to more than 40,000 values"),
    "4,000 unknown keys": ("MN009", "more problems"),
    "unknown options": ("MN009", "more problems"),
    "20,000 options": ("MN007", "words, expected at most 4,096"),
    "superscript port": ("MN104", "found '²'"),
    "json infinity": ("MN110", "not JSON"),
    "json big number": ("MN110", "is no number that JSON has"),
    "json big text number": ("MN114", "expected a port"),
    "infinite": ("MN104", "expected a finite number"),
    "variables double": ("MN007", "becomes longer than 131,071 characters"),
    "variables in a chain": ("MN007", "hangs on more than 100 other variables"),
    "huge sizes": ("MN007", "expected at most 65536"),
    "wide rank": ("MN016", "devices of one rank"),
    "many ranks": ("MN016", "64,000 ranks, expected at most 4,096"),
    "many nodes said": ("MN007", "expected at most 1024"),
    "sexagesimal": ("MN001", "absurdly large"),
    "merge itself": ("MN001", "contain themselves"),
    "aliases of long text": ("MN001", "more than 4,194,304 characters"),
    "many values": ("MN001", "more than 40,000 values"),
    "100,000 escaped words": ("MN007", "words, expected at most 4,096"),
    "long word": ("MN007", "more than 131,071 characters"),
    "long gate": ("MN019", "expected 'metric op value'"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_hostile_file_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_bytes(hostile.TEXTS[name]().encode())
    found = limits.apart("validate", path)
    assert not found.fault
    code, words = WORDS[name]
    problems = validate_one(path)[1]
    assert [p for p in problems if p.rule == code and words in p.message], problems[:5]


def test_many_problems_are_counted_and_a_few_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(PARALLEL + "".join(f"num_nodes_{n}: 1\n" for n in range(4000)))
    problems = validate_one(path)[1]
    assert len(problems) == 201
    assert problems[-1].message == "and 3,800 more problems, which are not shown"
    assert problems[-1].severity is Severity.ERROR
    assert [p.place.line for p in problems[:-1]] == sorted(p.place.line for p in problems[:-1])


def test_an_error_is_shown_before_many_warnings(tmp_path: Path) -> None:
    from steps.core.errors import enough

    place = load_case(_write(tmp_path, PARALLEL)).place()
    warnings = [Problem("MN601", f"w{n}", place, severity=Severity.WARNING) for n in range(500)]
    shown = enough([*warnings, Problem("MN999", "e", place)])
    assert "MN999" in {p.rule for p in shown}
    assert shown[-1].severity is Severity.WARNING


def test_the_first_examples_of_the_fuzzer(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    for number in range(60):
        path.write_bytes(mutate.example(number))
        for command in limits.COMMANDS:
            found = limits.judged(command, path)
            assert not found.fault, (number, command, found.fault)


def test_the_fuzzers_examples_are_the_same_everywhere() -> None:
    assert mutate.example(7) == mutate.example(7) != mutate.example(8)


def _raise(path: Path) -> int:
    return int(path.read_text())


def _spin(path: Path) -> int:
    while True:
        time.time()


def _infra(path: Path) -> int:
    return 3


@pytest.mark.parametrize(
    ("command", "fault"), [(_raise, "ValueError"), (_spin, "too slow"), (_infra, "exit 3")]
)
def test_the_fuzzer_sees_what_it_looks_for(
    command: limits.Command, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.COMMANDS, "validate", command)
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    path = _write(tmp_path, "no number")
    assert fault in limits.judged("validate", path).fault
    assert fault in limits.apart("validate", path).fault


def test_the_fuzzer_sees_memory_and_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, "")
    monkeypatch.setattr(limits, "MEGABYTES", 1.0)
    assert "MB" in limits.apart("validate", path).fault
    monkeypatch.setitem(limits.COMMANDS, "validate", lambda path: os._exit(5))
    assert "died" in limits.apart("validate", path).fault


def test_a_failing_example_is_kept_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        limits, "COMMANDS", {"validate": lambda path: 3 * (b"odd" in path.read_bytes())}
    )
    monkeypatch.setattr(mutate, "example", lambda number, *_: b"a\nodd\nb\nc\n" * (number == 1))
    monkeypatch.setattr(fuzz, "_TURNS", ((),))
    monkeypatch.setattr(hostile, "files", dict)
    monkeypatch.setattr(limits, "peak", lambda: 900.0)  # a test process that many tests have filled
    keep = tmp_path / "kept"
    assert fuzz.main(["--examples", "3", "--jobs", "1", "--keep", str(keep)]) == 1
    assert (keep / "1-validate.yaml").read_bytes() == b"odd"
    monkeypatch.setattr(mutate, "example", lambda number, *_: b"")
    assert fuzz.main(["--examples", "3", "--jobs", "1", "--keep", str(keep)]) == 0


def test_numbers_of_commands_are_bounded() -> None:
    argv = ["--nnodes", "9" * 400, "--port", "8_0", "--x", "-1"]
    assert commandline.read(argv).number("--nnodes", 1) == 1
    assert commandline.read(argv).number("--port", 1) == 80
    assert whole("9" * 400) is None
    assert whole("8k") == 8000
    assert [integer(v) for v in (float("inf"), "²", "9" * 5000, 1e300, "7", 7.0)] == [
        None, None, None, None, 7, 7,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["NaN", "[1e999]", '{"a": -Infinity}', "[" * 99_999, "9" * 30])
def test_json_that_no_program_can_keep_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_filling_ends_where_no_program_takes_the_text() -> None:
    unknown: list[str] = []
    assert fill("$A$A", {"A": "x" * 60_000}, unknown.append) == "x" * 120_000
    with pytest.raises(TooLong):
        fill("$A$A$A", {"A": "x" * 60_000}, unknown.append)


def test_ranks_share_what_variables_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PARALLEL.replace("env_common:\n", f"env_common:\n  A: {'x' * 900}\n  B: $A$A\n")
    case = load_case(_write(tmp_path, text))
    resolver.resolve(case, neutral_cluster(2))
    monkeypatch.setattr("steps.core.plan.scope.MAX_FILLED", 4)
    with pytest.raises(CaseError, match="variables multiply"):
        resolver.resolve(case, neutral_cluster(2))


def test_a_pool_is_told_to_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.core.case.parts.pool.MAX_POOL", 1000)
    path = tmp_path / "case.yaml"
    path.write_text(hostile.TEXTS["large pool"]())
    assert "characters of config" in validate_one(path)[1][0].message


def test_fix_keeps_the_line_ends(tmp_path: Path) -> None:
    text = PARALLEL.replace("--max-num-seqs", "--max-num-seq").replace("\n", "\r\n")
    path = tmp_path / "case.yaml"
    path.write_bytes(text.encode())
    assert fix.run([str(path)]) == 0
    assert path.read_bytes() == text.replace("--max-num-seq ", "--max-num-seqs ").encode()


def test_fix_reads_no_pipe(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    os.mkfifo(path)
    assert fix.run([str(path)]) == 2


@pytest.mark.parametrize("lines", ["grace: 0s", "keep_for: 9999h", "budgets: {pulling: 0}"])
def test_a_duration_of_a_profile_is_checked(lines: str, tmp_path: Path) -> None:
    path = _write(tmp_path, f"image: x\n{lines}\n")
    assert [p.rule for p in profile.check(load_yaml(path))] == ["MN007"]
    with pytest.raises(CaseError):
        profile.load_profile(path)


@pytest.mark.parametrize("words", ["--seed 4294967296", "--kv-cache-memory-bytes 42949672960"])
def test_a_large_number_that_is_no_size_of_the_fleet_is_fine(words: str, tmp_path: Path) -> None:
    text = PARALLEL.replace("--max-num-seqs 32", f"--max-num-seqs 32 {words}")
    assert not validate([_write(tmp_path, text)])


def test_a_name_in_a_file_may_be_any_text(tmp_path: Path) -> None:
    long = "x" * 20_000
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(f"a3: [{{name: a, case: {long}}}]\nexcluded: none\n")
    path = _write(tmp_path, PARALLEL + f"proxy: {{script: {long}.py}}\n")
    assert [p.rule for p in validate([path], matrix)] == ["MN803", "MN801"]
    assert limits.judged("plan", path).fault == ""


def test_a_profile_may_hold_keys_of_its_own(tmp_path: Path) -> None:
    path = _write(tmp_path, "image: a\nx-note: any\n")
    assert profile.load_profile(path).image == "a"


def _write(folder: Path, text: str) -> Path:
    path = folder / "case.yaml"
    path.write_text(text)
    return path
