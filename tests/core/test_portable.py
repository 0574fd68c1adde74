"""What an artifact store does not take: signs in names, files without content."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from steps.core.record import portable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a:b", "a_b"),
        ('<>|*?"\\', "_______"),
        ("line\nbreak\r", "line_break_"),
        ("\x07bell", "_bell"),
        (os.fsdecode(b"caf\xe9"), "caf_"),
        ("größe [1] 'x' %41 #.log", "größe [1] 'x' %41 #.log"),
    ],
)
def test_a_name_becomes_one_that_can_be_uploaded(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).write_text("kept")
    told = portable.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [expected]
    assert (tmp_path / expected).read_text() == "kept"
    assert bool(told) == (name != expected)
    assert told.isprintable()


def test_nothing_is_lost_where_two_names_become_one(tmp_path: Path) -> None:
    for name in ("a:b", "a?b", "a_b", "a_b.1"):
        (tmp_path / name).write_text(name)
    portable.make(tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"a:b", "a?b", "a_b", "a_b.1"}
    assert not [path for path in tmp_path.iterdir() if re.search("[:?]", path.name)]


def test_the_longest_name_that_is_taken(tmp_path: Path) -> None:
    for name in ("x" * 254 + ":", "x" * 254 + "_"):
        (tmp_path / name).write_text(name)
    portable.make(tmp_path)
    assert {path.read_text()[-1] for path in tmp_path.iterdir()} == {":", "_"}


def test_only_links_within_to_files_stay(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "deep").mkdir(parents=True)
    (root / "file").write_text("x")
    (tmp_path / "secret").write_text("x")
    kept = {"within": "file", "deep/up": "../file"}
    gone = {"out": "../secret", "nowhere": "absent", "loop": "loop", "top": ".", "root": "/"}
    for name, target in {**kept, **gone}.items():
        (root / name).symlink_to(target)
    told = portable.make(root)
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == {"deep", "file", *kept}
    assert all(f"{name} (a link to {target})" in told for name, target in gone.items())
    assert (tmp_path / "secret").exists()


def test_what_nobody_may_read_can_be_read_afterwards(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut" / "a:b").write_text("x")
    (tmp_path / "shut" / "a:b").chmod(0)
    (tmp_path / "shut").chmod(0)
    portable.make(tmp_path)
    assert (tmp_path / "shut" / "a_b").stat().st_mode & 0o400
    assert (tmp_path / "shut").stat().st_mode & 0o700 == 0o700
