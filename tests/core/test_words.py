"""Words of a command: as shlex splits them, each where it stands in the file."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.core.case import shellwords
from steps.core.case.source import parse_yaml

TEXT = st.text(st.sampled_from("ab-{}:,$= \t\r'\"\\\n\xa0\u3000é"), max_size=40) | st.text(
    max_size=30
)


@given(TEXT)
def test_equals_shlex(text: str) -> None:
    if "\\\n" in text:  # shlex keeps the line break, a shell and we drop both
        return
    try:
        wanted: list[str] | None = shlex.split(text, posix=True)
    except ValueError:
        wanted = None
    if wanted is None:
        with pytest.raises(shellwords.UnbalancedQuote):
            shellwords.split(text)
    else:
        assert [word for word, _, _ in shellwords.split(text)] == wanted


@given(st.lists(st.text(max_size=10), max_size=6))
def test_takes_back_what_shlex_quotes(items: list[str]) -> None:
    assert [word for word, _, _ in shellwords.split(shlex.join(items))] == items


def test_a_backslash_at_a_line_end_continues_the_line() -> None:
    text = 'vllm serve m \\\n  --port 1\\\n2 "a\\\nb"\n'
    assert [w for w, _, _ in shellwords.split(text)] == ["vllm", "serve", "m", "--port", "12", "ab"]


@given(TEXT)
def test_offsets_frame_each_word(text: str) -> None:
    try:
        found = shellwords.split(text)
    except shellwords.UnbalancedQuote as error:
        assert 0 <= error.offset < len(text)
        return
    last = 0
    for word, start, end in found:
        assert last <= start < end <= len(text)
        assert [w for w, _, _ in shellwords.split(text[start:end])] == [word]
        last = end


def test_an_open_quote_says_which_and_where() -> None:
    with pytest.raises(shellwords.UnbalancedQuote, match="'") as caught:
        shellwords.split("a b 'c d")
    assert caught.value.offset == 4


@pytest.mark.parametrize(
    ("yaml_text", "where"),
    [
        (
            "c: >\n  vllm serve m\n  --port 80\n  --tp 8\n",
            {"vllm": (2, 3), "80": (3, 10), "8": (4, 8)},
        ),
        ("c: |\n  vllm serve m \\\n    --port 80\n", {"serve": (2, 8), "--port": (3, 5)}),
        ("c: >-\n\n  vllm serve m\n\n  -tp 8\n", {"m": (3, 14), "-tp": (5, 3)}),
        ("c: vllm serve m --port 80\n", {"vllm": (1, 4), "--port": (1, 17)}),
        ("c: vllm serve m\n  --port 80\n", {"--port": (2, 3)}),
        ("c: 'vllm serve m --port 80'\n", {"vllm": (1, 5), "80": (1, 25)}),
        ('c: "vllm serve m\n  --port 80"\n', {"vllm": (1, 5), "--port": (2, 3)}),
        ("c: &x >  # why\n  vllm serve m\n", {"vllm": (2, 3)}),
        ("c: >\n  vllm serve m --p 8\n  --q 8 --p8 8\n", {"--q": (3, 3), "--p8": (3, 9)}),
    ],
)
def test_places(yaml_text: str, where: dict[str, tuple[int, int]]) -> None:
    source = parse_yaml(yaml_text, "f")
    text = source.data["c"]
    locator = shellwords.Locator("f", source.lines, source.spans[("c",)])
    found = {word: locator.place(text[a:b]) for word, a, b in shellwords.split(text)}
    for word, (line, column) in where.items():
        assert (found[word].line, found[word].column) == (line, column), word


def test_a_word_over_several_lines_stands_where_it_begins() -> None:
    source = parse_yaml('c: >\n  vllm serve m --config\n  \'{"a": 1,\n  "b": 2}\' --last\n', "f")
    text = source.data["c"]
    locator = shellwords.Locator("f", source.lines, source.spans[("c",)])
    lines = [locator.place(text[a:b]).line for _, a, b in shellwords.split(text)]
    assert lines == [2, 2, 2, 2, 3, 4]
