"""YAML text to data with places: equal to safe_load, strict where that is not, never a crash."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from steps.core.case.source import MAX_BYTES, load_yaml, parse_yaml
from steps.core.errors import CaseError


def problems(text: str) -> list[Any]:
    with pytest.raises(CaseError) as caught:
        parse_yaml(text, "f.yaml")
    return list(caught.value.problems)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\u2028\u2029"),
        max_size=12,
    )
    | st.dates()
    | st.sampled_from(["yes", "no", "on", "0x1F", "1:30", "~", "1_000", "=", "<<", "012", "1e3"])
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcXYZ_.-$", max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(DATA, st.booleans(), st.sampled_from([None, True, False]))
def test_equals_safe_load(value: Any, unicode: bool, flow: bool | None) -> None:
    text = yaml.safe_dump(value, allow_unicode=unicode, default_flow_style=flow)
    assert parse_yaml(text, "f").data == yaml.safe_load(text)


ANCHORS = st.sampled_from("abc")
PAIRS = st.dictionaries(st.sampled_from("klmn"), st.integers(0, 9), max_size=3)


@given(
    st.tuples(PAIRS, PAIRS, PAIRS),
    st.lists(st.lists(ANCHORS, min_size=1, max_size=3), max_size=2),
    PAIRS,
    st.booleans(),
)
def test_merge_keys_are_those_of_yaml(
    bases: tuple[dict[str, int], ...],
    merges: list[list[str]],
    own: dict[str, int],
    chained: bool,
) -> None:
    """Held against the specification: PyYAML 6.0.4 and 6.0.3 differ in which of a list wins."""

    def flow(pairs: dict[str, int]) -> list[str]:
        return [f"{key}: {value}" for key, value in pairs.items()]

    lines = []
    known: dict[str, dict[str, int]] = {}
    for at, (name, pairs) in enumerate(zip("abc", bases, strict=True)):
        before = "abc"[at - 1] if chained and at else ""
        inner = [f"<<: *{before}"] if before else []
        known[name] = {**known.get(before, {}), **pairs}
        lines.append(f"{name}: &{name} {{{', '.join([*inner, *flow(pairs)])}}}")
    entries = [f"<<: [{', '.join('*' + name for name in names)}]" for names in merges]
    if merges and len(merges[0]) == 1:
        entries[0] = f"<<: *{merges[0][0]}"
    lines.append(f"d: {{{', '.join([*flow(own), *entries])}}}")
    lines.append("e: {<<: *a, z: {<<: [*b, *c]}}")
    merged: dict[str, int] = {}
    for names in merges:
        for name in reversed(names):
            merged.update(known[name])
    wanted = {
        **known,
        "d": {**merged, **own},
        "e": {**known["a"], "z": {**known["c"], **known["b"]}},
    }
    assert parse_yaml("\n".join(lines), "f").data == wanted


def test_two_merge_keys_in_a_merged_mapping() -> None:
    text = "a: &a {k: 1}\nb: &b {k: 2}\nc: &c {<<: *a, <<: *b}\nd: {<<: *c}\n"
    assert parse_yaml(text, "f").data["d"] == {"k": 2}


def test_an_own_value_wins_over_the_one_it_inherits() -> None:
    text = "a: &a {k: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b}\n"
    assert parse_yaml(text, "f").data["c"] == {"k": 2}


def test_places() -> None:
    text = "model: m\nlist:\n  - a\n  -   key: v\nflow: {x: [1, 2]}\n"
    source = parse_yaml(text, "f.yaml")
    where = {
        ("model",): (1, 1),
        ("list",): (2, 1),
        ("list", 0): (3, 5),
        ("list", 1, "key"): (4, 7),
        ("flow", "x"): (5, 8),
        ("flow", "x", 1): (5, 15),
        ("list", 7): (2, 1),
        ("nowhere",): (1, 1),
    }
    for path, (line, column) in where.items():
        place = source.place(*path)
        assert (place.file, place.line, place.column) == ("f.yaml", line, column), path


def test_a_merged_value_stands_where_it_was_written() -> None:
    source = parse_yaml("base: &b\n  k: 1\nuse:\n  <<: *b\n  own: 2\n", "f")
    assert source.place("use", "k").line == 2
    assert source.place("use", "own").line == 5


def test_every_repeated_key_is_named_with_its_place() -> None:
    found = problems("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert [(p.place.line, "twice" in p.message) for p in found] == [(4, True), (5, True)]


def test_a_key_that_overrides_a_merged_one_is_no_repetition() -> None:
    text = "a: &a {k: 1}\nb: {<<: *a, k: 2}\n"
    assert parse_yaml(text, "f").data["b"] == {"k": 2}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n\tb: 1\n", 2, "tab"),
        ("a: [1, 2\nb: 1\n", 2, "not YAML"),
        ("a: 'x\n", 1, "not YAML"),
        ("a: *nobody\n", 1, "nobody"),
        ("a: 1\n---\nb: 2\n", 2, "One case a file"),
        ("a: !!python/object:os.system {x: 1}\n", 1, "python/object"),
        ("a: !thing [1]\n", 1, "!thing"),
        ("a: !thing x\n", 1, "!thing"),
        ("a: !!timestamp soon\n", 1, "soon"),
        ("a: !!int ''\n", 1, "int"),
        ("a: 2026-99-99\n", 1, "2026-99-99"),
        ("2026-99-99: a\n", 1, "2026-99-99"),
        ("a: !!binary 'é'\n", 1, "binary"),
        ("ok: 1\n? [a]\n: 1\n", 2, "plain word"),
        ("a: 1\nb: {<<: 3}\n", 2, "'<<'"),
        ("a: &a [*a]\n", 1, "themselves"),
        ("a: &a {<<: *a}\n", 1, "themselves"),
        ('a: 1\nb: "x\\0y"\n', 2, "NUL"),
        ("a: 1\nb: \x01\n", 2, "not YAML"),
        ("a: 0x" + "f" * 5000 + "\n", 1, "number"),
        ("a: " + "9" * 5000 + "\n", 1, "int"),
        ("a: " + "[" * 5000 + "\n", 1, "levels deep"),
        ("a: " + "{b: " * 500 + "\n", 1, "levels deep"),
        ("- " * 500 + "x\n", 1, "levels deep"),
    ],
)
def test_bad_text(text: str, line: int, words: str) -> None:
    found = problems(text)
    assert any(words in p.message + p.hint for p in found), found
    assert found[0].place.line == line
    assert {p.rule for p in found} == {"MN001"}


def test_deep_blocks_do_not_overflow() -> None:
    text = "".join(f"{'  ' * n}k{n}:\n" for n in range(300))
    assert "levels deep" in problems(text)[0].message


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "multiply" in problems("\n".join(lines))[0].message


def test_a_merge_bomb_makes_no_more_than_its_keys() -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    assert parse_yaml("\n".join(lines), "f").data["a11"] == {"k": 1}


def test_keys_that_merging_multiplies_are_counted() -> None:
    keys = ", ".join(f"k{n}: 1" for n in range(200))
    lines = [f"a0: &a0 {{{keys}}}"]
    lines += [f"a{n}: &a{n} {{<<: *a{n - 1}, b{n}: 1}}" for n in range(1, 400)]
    found = problems("\n".join(lines))
    assert len(found) == 1
    assert "multiply" in found[0].message


@given(st.text(max_size=60) | st.text(":-[]{}&*!|>'\"%@`#?, \n\t\\a1<=~.", max_size=60))
def test_no_text_crashes_it(text: str) -> None:
    try:
        parse_yaml(text, "f")
    except CaseError as error:
        assert error.problems
        assert all(p.place.line >= 1 for p in error.problems)


@given(st.binary(max_size=200))
def test_no_bytes_crash_it(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.yaml"
    path.write_bytes(raw)
    try:
        load_yaml(path)
    except CaseError as error:
        assert error.problems


def load_problem(path: Path) -> Any:
    with pytest.raises(CaseError) as caught:
        load_yaml(path)
    assert caught.value.problems[0].place.file == str(path)
    return caught.value.problems[0]


def test_files_that_are_no_cases(tmp_path: Path) -> None:
    noise = tmp_path / "noise.yaml"
    noise.write_bytes(random.Random(1).randbytes(10 << 20))
    assert f"{10 << 20:,}" in load_problem(noise).message
    small = tmp_path / "small.yaml"
    small.write_bytes(b"a: 1\nb: \xff\n")
    assert load_problem(small).place.line == 2
    utf16 = tmp_path / "utf16.yaml"
    utf16.write_text("a: 1\n", encoding="utf-16")
    assert "UTF-8" in load_problem(utf16).hint
    assert "directory" in load_problem(tmp_path).message
    assert "no such file" in load_problem(tmp_path / "absent.yaml").message
    assert load_problem(tmp_path / ("n" * 300)).rule == "MN002"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert load_problem(tmp_path / "loop").rule == "MN002"


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "closed.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user (root) may read everything")
    assert "permissions" in load_problem(path).hint


def test_a_file_that_cannot_be_read_though_it_is_there() -> None:
    path = Path("/proc/self/mem")  # reading address 0 fails even for root
    if not path.exists():
        pytest.skip("no /proc on this system")
    assert "cannot be read" in load_problem(path).message


def test_an_endless_file_is_not_read_to_its_end() -> None:
    assert load_problem(Path("/dev/zero")).rule == "MN002"


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"a: 1\n")
    os.close(write)
    try:
        assert load_yaml(Path(f"/dev/fd/{read}")).data == {"a": 1}
    finally:
        os.close(read)


def test_encodings_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - \xc3\xa9\r\n")
    source = load_yaml(path)
    assert source.data == {"a": 1, "b": ["é"]}
    assert source.place("b", 0).line == 3
    path.write_bytes(b"")
    assert load_yaml(path).data is None
    path.write_text("# only a comment\n")
    assert load_yaml(path).data is None


def test_just_under_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text("a: " + "x" * (MAX_BYTES - 4))
    assert len(load_yaml(path).data["a"]) == MAX_BYTES - 4
