"""A comment on a pull request: what it asks for, of which cases, in which words."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from ci import run
from ci.compare import compare
from ci.nightly import comment, matrix
from ci.nightly.comment import Asked, Pinned
from ci.nightly.matrix import Entry, Matrix
from steps.core.errors import UsageError

SHA = "a" * 40
PR = Pinned("vllm-ascend", "https://github.com/o/vllm-ascend", SHA)


def entry(
    name: str, soc: str = "a3", case: str = "", size: int = 2, cadence: str = "nightly"
) -> Entry:
    case = case or f"configs/{name}.yaml"
    return Entry(soc, name, case, size, soc, ("npu",), cadence, "us")


MATRIX = Matrix(
    (
        entry("deepseek-v3", case="configs/DeepSeek-V3.yaml"),
        entry("deepseek-v3-a2", "a2", case="configs/DeepSeek-V3.yaml", size=4),
        entry("qwen3-235b", case="configs/Qwen3-235B-A22B.yaml", cadence="weekly"),
        entry("glm-5", "a2", case="configs/GLM-5-W8A8.yaml"),
    ),
    {},
)


def names(body: str) -> list[str]:
    return [one.name for one in comment.choose(MATRIX, comment.read(body))]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("/nightly one two\r\nplease", Asked("nightly", ("one", "two"))),
        (f"/nightly one {SHA}", Asked("nightly", ("one",), sha=SHA)),
        ("/weekly all --soc a3 --soc a2", Asked("weekly", ("all",), ("a3", "a2"))),
        (
            "/nightly --product vllm=v0.19.0 one --image=quay.io/x/y:z@sha256:12 two",
            Asked("nightly", ("one", "two"), (), (("vllm", "v0.19.0"),), "quay.io/x/y:z@sha256:12"),
        ),
        ("/nightly one --compare main", Asked("nightly", ("one",), compare="main")),
        (
            "/nightly a.yaml --product vllm=https://github.com/v/vllm@pull/1/head",
            Asked("nightly", ("a.yaml",), (), (("vllm", "https://github.com/v/vllm@pull/1/head"),)),
        ),
    ],
)
def test_what_a_comment_asks_for(body: str, expected: Asked) -> None:
    assert comment.is_command(body) and comment.read(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "hello",
        "please run\n/nightly one",
        "/nightlyone",
        "/NIGHTLY one",
        "nightly one",
        "\n/nightly a",
    ],
)
def test_what_is_no_command_asks_for_nothing(body: str) -> None:
    assert not comment.is_command(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("/nightly", "no case is named"),
        (f"/nightly {SHA}", "no case is named"),
        (f"/nightly one {SHA} {'b' * 40}", "two commits"),
        ("/nightly $(touch pwned)", "found '$(touch'"),
        ("/nightly one;x", "found 'one;x'"),
        ("/nightly `x`", "expected names"),
        ("/nightly one --bench none", "unrecognized arguments: --bench"),
        ("/nightly one -h", "unrecognized arguments: -h"),
        ("/nightly one --prod vllm=x", "unrecognized"),
        ("/nightly one --product", "expected one argument"),
        ("/nightly one --product vllm", "expected NAME=REF"),
        ("/nightly one --product vllm=", "expected NAME=REF"),
        ("/nightly one --product vllm=--upload-pack=x", "expected NAME=REF"),
        ("/nightly one --product vllm=https://h/x@--exec=y", "expected NAME=REF"),
        ("/nightly one --product vllm=$HOME", "expected NAME=REF"),
        ("/nightly one --product vllm=a --product vllm=b", "named twice"),
        ("/nightly one --product vllm=dir:/etc", "names no repository"),
        ("/nightly one --product vllm=wheel:/x.whl", "names no repository"),
        ("/nightly one --product vllm=ssh://h/x@y", "names no repository"),
        ("/nightly one --compare file:///x@y", "names no repository"),
        ("/nightly one --budget 9", "--budget: found '9'"),
        ("/nightly one --compare main --budget 1e9", "--budget: found"),
        ("/nightly one --image=-x", "--image: found '-x'"),
        ("/nightly one --compare=-x", "--compare: found"),
        ("/nightly one --soc A/3", "--soc: found"),
        ("/nightly " + "x" * 301, "too long"),
        ("/nightly " + "x " * 301, "too long"),
    ],
)
def test_a_wrong_command_is_told_what_is_wrong(body: str, told: str) -> None:
    with pytest.raises(UsageError) as found:
        comment.read(body)
    assert told in str(found.value) and "Write: /nightly NAME" in str(found.value)


def test_words_of_any_comment_are_harmless() -> None:
    """Whatever people type: no word that leaves has a sign that a shell or an option reads."""
    rng = random.Random(7)
    signs = "ab1-=./:@ \t'\"$`;|&<>(){}[]*?!#\\~^%+\u00e9\u202e\x00"
    said = 0
    for _ in range(2000):
        noise = "".join(rng.choice(signs) for _ in range(rng.randint(1, 12)))
        option = rng.choice(("", "--product vllm=", "--image ", "--compare ", "--soc ", "--x"))
        try:
            asked = comment.read(f"/nightly one {option}{noise}")
            found = comment.words(asked, PR)
        except UsageError:
            continue
        said += 1
        for word in (*found, *asked.names, *asked.socs):
            assert re.fullmatch(r"[A-Za-z0-9._/:@=+~^-]+", word), word
            assert not word.startswith("-") or word in ("--product", "--image", "--a", "--b"), word
    assert said > 10


# Which cases


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("/nightly all", ["deepseek-v3-a2", "deepseek-v3", "glm-5"]),
        ("/weekly all", ["qwen3-235b"]),
        ("/nightly all qwen3-235b --soc a3", ["deepseek-v3", "qwen3-235b"]),
        ("/nightly deepseek-v3", ["deepseek-v3"]),
        ("/nightly DeepSeek-V3", ["deepseek-v3-a2", "deepseek-v3"]),
        ("/nightly configs/DeepSeek-V3.yaml --soc a2", ["deepseek-v3-a2"]),
        ("/weekly glm-5", ["glm-5"]),
    ],
)
def test_the_entries_that_are_meant(body: str, expected: list[str]) -> None:
    assert names(body) == expected


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("/nightly depseek-v3", "Did you mean deepseek-v3"),
        ("/nightly Qwen3-235B-W8A8.yaml", "qwen3-235b"),
        ("/nightly zzz", "Names: deepseek-v3, deepseek-v3-a2, qwen3-235b, glm-5."),
        ("/nightly all --soc a5", "found 'a5'"),
        ("/weekly all --soc a2", "no weekly entry on a2"),
    ],
)
def test_an_unknown_case_is_answered_with_the_nearest(body: str, told: str) -> None:
    with pytest.raises(UsageError) as found:
        names(body)
    assert told in str(found.value)


def test_more_jobs_than_github_makes_are_refused() -> None:
    many = Matrix(tuple(entry(f"n{number}") for number in range(257)), {})
    with pytest.raises(UsageError, match="257 entries"):
        comment.choose(many, Asked("nightly", ("all",)))


def test_the_matrix_of_the_project_is_one_to_choose_from() -> None:
    found = comment.choose(matrix.load(), Asked("nightly", ("all",)))
    assert found and all(one.cadence == "nightly" for one in found)


# In which words


def test_the_pull_request_is_the_product() -> None:
    asked = Asked("nightly", ("x",), (), (("vllm", "v0.19.0"),), "quay.io/x:y")
    assert comment.session(asked) == "multinode"
    assert comment.words(asked, PR) == (
        *("--product", f"vllm-ascend=https://github.com/o/vllm-ascend@{SHA}"),
        *("--product", "vllm=v0.19.0", "--image", "quay.io/x:y"),
    )
    assert comment.words(asked, None)[:2] == ("--product", "vllm=v0.19.0")


def test_a_request_is_compared_with_its_base() -> None:
    asked = Asked("nightly", ("x",), compare="main", budget="900")
    assert comment.session(asked) == "compare" and comment.moves(asked)
    url = "vllm-ascend=https://github.com/o/vllm-ascend"
    found = comment.words(asked, PR, "d" * 40)
    assert found == ("--a", f"{url}@{'d' * 40}", "--b", f"{url}@{SHA}", "--budget", "900")
    with pytest.raises(UsageError, match="changes no product"):
        comment.words(asked, None)


@pytest.mark.parametrize("base", ["pip:0.18.0", "image", "https://github.com/v/x@main"])
def test_a_base_from_elsewhere_stays_as_it_was_asked_for(base: str) -> None:
    asked = Asked("nightly", ("x",), compare=base)
    assert not comment.moves(asked)
    assert comment.words(asked, PR)[:2] == ("--a", f"vllm-ascend={base}")


def test_the_words_are_those_of_the_sessions() -> None:
    """What leaves here is taken by the options of the commands that get it."""
    plain = Asked("nightly", ("x",), (), (("vllm", "v0.19.0"),), "quay.io/x:y")
    found = run.main.parser().parse_args(["CASE", *comment.words(plain, PR)])
    assert (found.product, found.image) == ([PR.word, "vllm=v0.19.0"], "quay.io/x:y")
    asked = replace(plain, compare="main", budget="900")
    words = comment.words(asked, PR, "d" * 40)
    told, more = compare.main.parser().parse_known_args(["CASE", *words])
    assert told.b == [PR.word] and told.budget == 900 and len(told.a) == 1
    found = run.main.parser().parse_args(["CASE", *more])
    assert (found.product, found.image) == (["vllm=v0.19.0"], "quay.io/x:y")


def test_the_product_of_the_request_has_one_version() -> None:
    with pytest.raises(UsageError, match="vllm-ascend is what this pull request changes"):
        comment.words(Asked("nightly", ("x",), (), (("vllm-ascend", "main"),)), PR)
