"""The smoke driver and odd answers: that request fails, with its reason; the others count."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.bench_drivers import Job, Measurement, smoke, stream
from steps.core.plan.plan import Endpoint
from tests.bench import engine
from tests.bench.conftest import Bench


def measure(bench: Bench, url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """Four requests, the second answered oddly."""
    monkeypatch.setattr(engine, "ODD", kind)
    monkeypatch.setattr(engine, "STREAMED", [0])
    entry = bench.run.plan.benchmarks[0]
    asked = replace(entry.benchmark, num_prompts=4, max_out_len=8, batch_size=1, request_rate=0.0)
    bench.budget(60)
    job = Job(replace(entry, benchmark=asked), Endpoint(url, "demo/tiny", "server"), bench.place)
    return smoke.measure(bench.run, job)


FAILS = {
    "list content": "content is list",
    "number content": "content is int 5, not text",
    "true content": "content is bool",
    "null data": "an event is null, not an object",
    "text data": "an event is str x",
    "no json": "an event is no JSON",
    "deep": "an event is no JSON",
    "null choice": "a choice is null",
    "choices": "choices is no list",
    "list usage": "usage is list",
    "text usage": "completion_tokens is str 8, not a count",
    "true usage": "completion_tokens is bool",
    "nan usage": "completion_tokens is float nan",
    "huge usage": "completion_tokens is int 1000",
    "error": "an error in the middle of the stream",
    "no done": "without [DONE]",
    "huge line": "an event of more than 16 MiB",
    "markup": "not a stream of events: '<html>busy</html>'",
    "no http": "not HTTP",
    "gzip": "coded as 'gzip'",
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILS)
def test_a_request_that_cannot_be_understood_fails_alone(
    bench: Bench, url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(bench, url, kind, monkeypatch)
    assert not found.error
    assert found.requests == {
        "asked": 4, "sent": 4, "ok": 3, "failed": 1, "empty": 0, "truncated": 0
    }  # fmt: skip
    [failed] = [check for check in found.checks if check.status == "fail"]
    assert failed.name == "requests failed" and FAILS[kind] in failed.detail
    assert found.metrics["success_ratio"] == 0.75 and found.metrics["output_throughput"] > 0


@pytest.mark.parametrize(
    "kind",
    [
        "", "null error", "bom", "crlf", "bare", "comments", "fields", "done at the end",
        "interim", "http 1.0", "type", "capital", "extension", "bytewise", "trailer", "cut",
        "two lines", "bytes",
    ],
)  # fmt: skip
def test_what_http_and_events_allow_counts(
    bench: Bench, url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(bench, url, kind, monkeypatch)
    assert found.requests["ok"] == 4, found
    lines = (bench.place / "requests.jsonl").read_text().splitlines()
    assert all(sample["text"] and not sample["error"] for sample in map(json.loads, lines))


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        ("no usage", "answers without token counts", "uncounted"),
        ("no text", "answers empty", "empty"),
    ],
)
def test_text_and_token_counts_are_two_findings(
    bench: Bench, url: str, kind: str, name: str, count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(bench, url, kind, monkeypatch)
    assert [check.name for check in found.checks if check.status == "fail"] == [name]
    assert (found.requests["ok"], found.requests[count]) == (3, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "content", "usage", "completion_tokens", "error", "finish_reason"]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON | st.binary())
def test_a_payload_is_a_chunk_or_a_bad_answer(value: Any) -> None:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        said = stream.chunk(payload)
    except stream.BadAnswer:
        return
    assert isinstance(said.text, str) and isinstance(said.finish, str)
    said.text.encode()
    assert all(count is None or count >= 0 for count in (said.prompt, said.output))


PIECES = st.lists(
    st.binary(max_size=12)
    | st.sampled_from(
        [b"data:", b"data: x", b"\r", b"\n", b"\r\n", b"\n\n", b": c", b"\xef\xbb\xbf"]
    ),
    max_size=12,
)


def payloads(parts: list[bytes]) -> list[bytes] | str:
    """Everything a body says, or that it is bad."""
    events, found = stream.Events(), []
    try:
        for part in parts:
            found += events.feed(part)
        return found + list(events.end())
    except stream.BadAnswer:
        return "bad"


@given(PIECES)
def test_events_do_not_depend_on_how_the_bytes_come(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert payloads(parts) == payloads([whole]) == payloads([bytes([b]) for b in whole])


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 9), st.binary(max_size=9))
def test_chunks_are_taken_off_however_they_come(
    chunks: list[bytes], step: int, noise: bytes
) -> None:
    raw = (
        b"".join(b"%X;a=b\r\n%s\r\n" % (len(part), part) for part in chunks) + b"0\r\nT: 1\r\n\r\n"
    )
    coding = stream.Chunked()
    found = b"".join(coding.feed(raw[at : at + step]) for at in range(0, len(raw), step))
    assert found == b"".join(chunks)
    with_noise = stream.Chunked()
    with contextlib.suppress(stream.BadAnswer):
        with_noise.feed(noise + raw)
