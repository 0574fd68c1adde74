"""What logs say: each known signature by its example, and the first error of real-looking logs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steps.core import redaction
from steps.core.record import evidence
from steps.core.record.verdict import CLASSES

TABLE = evidence.signatures()


def of_lines(lines: list[str]) -> evidence.Evidence:
    return evidence.of_bytes(["\n".join(lines).encode()])


@pytest.mark.parametrize("signature", TABLE, ids=lambda s: s.id)
def test_an_example_is_recognised_as_itself(signature: evidence.Signature) -> None:
    found = evidence.recognise([signature.example])
    assert found
    assert found.id == signature.id
    assert of_lines(["INFO all is well", signature.example]).signature == signature


def test_the_table_is_well_formed() -> None:
    ids = [signature.id for signature in TABLE]
    assert len(set(ids)) == len(ids) >= 20
    for signature in TABLE:
        assert signature.verdict in ("", "product", *CLASSES)
        assert signature.explanation
        assert signature.hint
        assert not re.search(r"(?i)\btimed? ?out\b", signature.explanation)


def test_a_timeout_alone_is_never_environmental() -> None:
    for line in (
        "ERROR TimeoutError: no answer within 30 s",
        "RuntimeError: timed out waiting for the engine core to start",
        "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients",
    ):
        found = evidence.recognise([line])
        assert found is None or found.verdict not in ("infra", "config"), line


@pytest.mark.parametrize(
    "line",
    [
        "INFO errors: 0, all fine",
        "INFO error_count=3",
        "INFO args: --log-level ERROR",
        "INFO VLLM_LOGGING_LEVEL is log_level=ERROR",
        "INFO 200 OK no errors",
        "WARNING retrying",
        "INFO the terror of the deep",
        "INFO ignore_errors is set: ERROR",
        "",
    ],
)
def test_ordinary_lines_are_no_errors(line: str) -> None:
    assert of_lines([line]) == evidence.Evidence()


VLLM = """\
INFO 11-23 12:00:00 [api_server.py:1] vLLM API server version 0.32.0
WARNING 11-23 12:00:01 [x.py:2] something harmless
(EngineCore_0 pid=88) ERROR 11-23 12:00:07 [core.py:880] EngineCore failed to start.
(EngineCore_0 pid=88) ERROR 11-23 12:00:07 [core.py:880] Traceback (most recent call last):
(EngineCore_0 pid=88) ERROR 11-23 12:00:07 [core.py:880]   File "/v/core.py", line 871, in run
(EngineCore_0 pid=88) ERROR 11-23 12:00:07 [core.py:880]     engine = EngineCoreProc(*args)
(EngineCore_0 pid=88) ERROR 11-23 12:00:07 [core.py:880] torch.OutOfMemoryError: NPU out of memory.
(EngineCore_0 pid=88) Process EngineCore_0:
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "/v/api_server.py", line 11, in <module>
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.
""".splitlines()


def test_the_engines_own_error_comes_before_what_the_server_makes_of_it() -> None:
    found = of_lines(VLLM)
    assert found.signature
    assert found.signature.id == "npu-out-of-memory"
    assert "EngineCore failed to start" in found.lines[0]


PLAIN = """\
INFO loading
Traceback (most recent call last):
  File "/v/serve.py", line 1, in <module>
    main()
  File "/v/serve.py", line 9, in main
    sock.bind(address)
OSError: [Errno 98] Address already in use
INFO bye
ERROR connection to 10.0.0.2 lost
""".splitlines()


def test_a_traceback_is_its_head_its_last_frame_and_its_exception() -> None:
    found = of_lines(PLAIN)
    assert found.lines == (
        "Traceback (most recent call last):",
        'File "/v/serve.py", line 9, in main',
        "sock.bind(address)",
        "OSError: [Errno 98] Address already in use",
    )
    assert found.signature
    assert found.signature.id == "address-in-use"


def test_an_early_harmless_error_does_not_hide_the_deadly_one() -> None:
    lines = ["ERROR [a.py] could not read the optional tuning table"]
    lines += [f"INFO step {number}" for number in range(500)]
    lines += ["ERROR [worker.py] EI0006: Getting socket times out"]
    found = of_lines(lines)
    assert found.signature
    assert found.signature.id == "hccl-link"
    assert "tuning table" in found.lines[0]
    assert "EI0006" in found.lines[2]


def test_a_peers_death_is_a_consequence() -> None:
    found = of_lines(["ERROR lost connection to data parallel front-end 10.0.0.1:13389"])
    assert found.signature
    assert found.signature.consequence


def test_a_torn_traceback_and_an_unknown_error() -> None:
    torn = of_lines(["Traceback (most recent call last):", '  File "x", line 1', "    f()"])
    assert len(torn.lines) == 3
    unknown = of_lines(["ValueError: the moon is full"])
    assert unknown.lines == ("ValueError: the moon is full",)
    assert unknown.signature is None


def test_logs_on_disk(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    assert evidence.of_log(log) == evidence.Evidence()
    assert evidence.last_line(log) == ""
    log.write_bytes(
        b"\x1b[31mERROR\x1b[0m [Errno 28] No space left on device \xff\nlast \x1b[1mone\n\n"
    )
    found = evidence.of_log(log)
    assert found.lines[0].startswith("ERROR [Errno 28]")
    assert found.signature
    assert found.signature.id == "disk-full"
    assert evidence.last_line(log) == "last one"
    assert evidence.of_log(tmp_path) == evidence.Evidence()


def test_the_first_and_the_last_part_of_a_huge_log_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "PART_BYTES", 1000)
    log = tmp_path / "server.log"
    noise = "INFO nothing to see here\n" * 400
    log.write_text("ValueError: at the start\n" + noise)
    assert evidence.of_log(log).lines[0] == "ValueError: at the start"
    log.write_text(noise + "ValueError: at the end\n")
    assert evidence.of_log(log).lines == ("ValueError: at the end",)


def test_lines_are_cut_and_counted() -> None:
    found = of_lines(["ERROR " + "x" * 10_000, *["ERROR more"] * 50])
    assert len(found.lines[0]) == 400
    assert len(found.lines) <= 8


# Hostile logs: however long a line is, and whatever stands in it.


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of this thread, which other programs do not lengthen."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


PATTERNS = {
    **{signature.id: (signature.pattern, signature.example) for signature in TABLE},
    **{
        f"evidence{name}": (getattr(evidence, name), example)
        for name, example in {
            "_ERROR": "a.b.C ERROR error: HCCL aclrtX",
            "_HARMLESS": "--raise_no_log",
            "_EXCEPTION": "(x) ERROR a.b.C",
            "_ANSI": "\x1b[0;1",
        }.items()
    },
    **{
        f"redaction{at}": (
            pattern,
            "https://u:p authorization: bearer --token hf_a sk-a eyJaaaaaaaaaaa-",
        )
        for at, pattern in enumerate(redaction._PATTERNS)
    },
}


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_is_linear_in_its_own_prefix(name: str) -> None:
    pattern, example = PATTERNS[name]
    for end in range(1, len(example) + 1, max(1, len(example) // 12)):
        seed = example[:end]
        small, large = (seed * (size // len(seed)) for size in (25_000, 500_000))
        took = []
        for _ in range(4):  # other programs cost this one time too; a quadratic one stays slow
            few = seconds_of(lambda: list(pattern.finditer(small)))  # noqa: B023
            many = seconds_of(lambda: list(pattern.finditer(large)))  # noqa: B023
            took.append(f"{few:.3f} s of 25 kB, {many:.3f} s of 500")
            if many < max(80 * few, 0.35):
                break
        else:
            pytest.fail(f"{seed!r}: {took}")


def test_a_line_of_dashes_is_read_at_once() -> None:
    assert seconds_of(lambda: of_lines(["-" * 150_000 + " ERROR"])) < 1


@pytest.mark.parametrize("filling", ["\r 12%|##   | 3/9 [it/s]", "0.1234, ", "-"])
def test_the_error_behind_a_long_line_is_shown(tmp_path: Path, filling: str) -> None:
    log = tmp_path / "server.log"
    log.write_text("INFO start\n" + filling * (60_000_000 // len(filling)) + VLLM[6])
    found: list[evidence.Evidence] = []
    assert seconds_of(lambda: found.append(evidence.of_log(log))) < 4
    assert found[0].signature
    assert found[0].signature.id == "npu-out-of-memory"
    assert any("NPU out of memory" in line for line in found[0].lines)
    assert all(len(line) <= 500 for line in found[0].lines)


def test_a_log_of_errors_costs_no_minutes(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("ERROR something is odd here: Traceback\n" * 1_000_000)
    assert seconds_of(lambda: evidence.of_log(log)) < 4
