"""Following logs: long lines and progress bars cost neither memory nor time."""

from __future__ import annotations

import time
from pathlib import Path

from steps.core.record.cleaning import clean
from steps.core.redaction import MASK, Redactor
from steps.core.system.tail import Tail


def lines_of(tmp_path: Path, content: bytes) -> list[str]:
    """What a tail shows of a log that grows by ``content``."""
    shown: list[str] = []
    tail = Tail(tmp_path, lambda name, line: shown.append(line), "*.log")
    (tmp_path / "server.log").write_bytes(content)
    tail.start()
    tail.close()
    return shown


def test_a_carriage_return_ends_a_line(tmp_path: Path) -> None:
    assert lines_of(tmp_path, b"1%\r50%\r100%\r\nready\nlast") == [
        "1%", "50%", "100%", "ready", "last",
    ]  # fmt: skip


def test_a_line_of_many_megabytes_is_cut_and_costs_no_time(tmp_path: Path) -> None:
    began = time.process_time()
    shown = lines_of(tmp_path, b"x" * 40_000_000 + b"\nready\n")
    assert time.process_time() - began < 2
    assert [line[:9] for line in shown] == ["x" * 9, "ready"]
    assert len(shown[0]) < 100_000


def test_a_secret_in_a_line_of_many_megabytes_is_hidden(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("word " * 2_000_000 + "s3cret-value-1 " + "word " * 2_000_000)
    assert clean(log, Redactor(["s3cret-value-1"]))
    assert "s3cret" not in log.read_text()
    assert log.read_text().count(MASK) == 1
