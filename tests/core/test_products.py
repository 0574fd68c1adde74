"""--product NAME=REF and products: of a profile: what they mean, and what they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steps.core.case.values import decode, plain
from steps.core.errors import CaseError, UsageError
from steps.core.plan import products
from steps.core.plan.products import KNOWN, Product
from steps.core.plan.profile import load_profile

SHA = "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "source", "ref", "where"),
    [
        ("vllm=main", "git", "main", KNOWN["vllm"].repository),
        (f"vllm={SHA}", "git", SHA, KNOWN["vllm"].repository),
        ("vllm-ascend=pr/12", "git", "pr/12", KNOWN["vllm-ascend"].repository),
        ("vllm=https://h/a/b.git@feature/x", "git", "feature/x", "https://h/a/b.git"),
        ("vllm=ssh://git@h/a/b@v1", "git", "v1", "ssh://git@h/a/b"),
        ("vllm=git@h:a/b.git@v1", "git", "v1", "git@h:a/b.git"),
        ("mine=/tmp/x@HEAD~2", "git", "HEAD~2", "/tmp/x"),
        ("mine=~/x@main", "git", "main", "~/x"),
        ("vllm=pip:0.11.0", "pip", "0.11.0", None),
        ("vllm=wheel:/w/x.whl", "wheel", "", "/w/x.whl"),
        ("vllm=dir:../x", "dir", "", "../x"),
        ("vllm=image", "image", "", None),
    ],
)
def test_every_form(text: str, source: str, ref: str, where: str | None) -> None:
    found = products.read(text)
    assert (found.source, found.ref) == (source, ref)
    assert where is None or where in (found.repository, found.path)
    assert found.commit == (SHA if ref == SHA else "")
    assert found.moves == (source != "image")
    assert text.startswith(f"{found.name}=") and decode(Product, plain(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "vllm", "=x", "vllm=", "-x=main", "vllm=-x", "vllm=--upload-pack=touch /tmp/x",
        "vllm=/tmp/r@-x", "vllm=a b", "vllm=a\nb", "vllm=ext::sh -c x@main", "vllm=a..b",
        "vllm=pr/x", "vllm=pr/", "vllm=pip:", "vllm=pip:-r", "vllm=wheel:", "vllm=dir:-x",
        "vllm=https://h/r", "vllm=https://user:word@h/r@main", "mine=main",
    ],
)  # fmt: skip
def test_what_means_nothing_says_what_to_write(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        products.read(text)
    assert refused.value.hint and "word@" not in refused.value.message


def test_the_engine_is_installed_before_its_plugin_and_then_the_others_as_named() -> None:
    words = ["b=/b@x", "vllm-ascend=main", "a=/a@x", "vllm=main"]
    names = [one.name for one in products.wanted(words)]
    assert names == ["vllm", "vllm-ascend", "b", "a"]
    with pytest.raises(UsageError, match="twice"):
        products.wanted(["vllm=a", "vllm=b"])


def test_a_profile_places_products_and_the_command_line_counts_over_it() -> None:
    entries = {
        "vllm": {"ref": "v1", "timeout": "5m", "native": "never"},
        "mine": {"repository": "https://h/mine", "env": {"A": 1}, "paths": {"PATH": ["bin"]}},
    }
    known = products.of_profile(entries)
    assert known["vllm"].seconds == 300 and known["vllm"].module == "vllm"
    [vllm] = products.wanted([], known, listed=["vllm"])
    assert (vllm.ref, vllm.source) == ("v1", "git")
    vllm, mine = products.wanted(["mine=main", "vllm=pr/3"], known, listed=["vllm"])
    assert vllm.ref == "pr/3" and products.git_ref(vllm) == "refs/pull/3/head"
    assert mine.env == {"A": "1"} and mine.paths == {"PATH": ("bin",)}


def test_a_build_is_known_by_its_native_files() -> None:
    def key(*names: str, **more: object) -> str:
        listing = "\n".join(f"100644 blob {name}\t{name.split('@')[0]}" for name in names)
        return products.native_key(listing, Product("x", **more), "3.11")  # type: ignore[arg-type]

    base = key("csrc/a.py@1", "x.py@1", "setup.py@1")
    assert base == key("csrc/a.py@1", "x.py@2", "setup.py@1", "docs/a.md@1")
    for name in ("csrc/a.py@2", "k.cu@1", "CMakeLists.txt@1", "requirements/common.txt@1",
                 "requirements-dev.txt@1", "pyproject.toml@1"):  # fmt: skip
        assert base != key("csrc/a.py@1", "x.py@1", "setup.py@1", name), name
    assert base != key("csrc/a.py@1", "x.py@1", "setup.py@1", env={"A": "1"})


@pytest.mark.parametrize("word", ["mine=/x@main", "vllm=pip:1.0", "vllm=wheel:/w/vllm-1.whl",
                                  "vllm-ascend=dir:/x", "vllm=image"])  # fmt: skip
def test_a_product_is_kept_as_a_profile_has_it(word: str, tmp_path: Path) -> None:
    more = {"env": {"A": "1"}, "paths": {"PATH": ("bin",)}, "seconds": 90.0, "options": ("-v",)}
    asked = replace(products.read(word), **more)  # type: ignore[arg-type]
    asked = replace(asked, commit=SHA) if asked.source == "git" else asked
    file = tmp_path / "products.yaml"
    entries = {asked.name: products.entry(asked)}
    file.write_text(json.dumps({"image": "none", "products": entries}))
    known, listed = load_profile(file).known_products()
    [found] = products.wanted([], known, listed=listed)
    assert found == replace(asked, ref=SHA if asked.source == "git" else asked.ref)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{mine: {ref: main}}", "nothing says where mine comes from"),
        ("{vllm: {ref: --x}}", "no reference of git"),
        ("{vllm: {ref: main, timeout: soon}}", "found 'soon', expected seconds"),
        ("{vllm: {install: maybe}}", "maybe"),
        ("{vllm: {reff: main}}", "reff"),
        ("{vllm: {paths: {PATH: [/bin]}}}", "/bin"),
        ("{vllm: {paths: {PATH: [../bin]}}}", "../bin"),
        ("[vllm]", "products"),
    ],
)
def test_a_wrong_profile_is_refused_where_it_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(f"image: x\nproducts: {text}\n")
    with pytest.raises(CaseError) as refused:
        load_profile(file)
    assert said in str(refused.value.problems[0]) and refused.value.problems[0].place.line == 2
