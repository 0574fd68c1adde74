"""``ais_bench CONFIG --mode ... --work-dir DIR``: asks every question, leaves AISBench's files."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.engine import option
from tests.engine.web import post


def ask(model: dict[str, Any], question: str) -> dict[str, Any]:
    """One request, streamed, as AISBench sends it."""
    body = {
        "model": model["model"],
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": model["max_out_len"],
        **model["generation_kwargs"],
    }
    began = time.monotonic()
    scheme = "https" if model.get("enable_ssl") else "http"
    url = f"{scheme}://{model['host_ip']}:{model['host_port']}/v1/chat/completions"
    answer = post(url, body, model["api_key"])
    if answer.status != 200:
        return {"error": f"HTTP {answer.status}", "text": "", "tokens": 0, "e2el": 0, "ttft": 0}
    text, tokens, ttft = "", 0, 0.0
    for line in answer:
        data = line.removeprefix(b"data:").strip()
        if not data or data == b"[DONE]":
            continue
        event = json.loads(data)
        for choice in event["choices"]:
            ttft = ttft or time.monotonic() - began
            text += choice["delta"].get("content") or ""
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    took = time.monotonic() - began
    return {"error": "", "text": text, "tokens": tokens, "e2el": took, "ttft": ttft}


def counted(model: dict[str, Any], question: str, counts: list[int]) -> dict[str, Any]:
    """The same, counted as it begins and ends."""
    counts[0] += 1
    found = ask(model, question)
    counts[1] += 1
    return found


def bars(counts: list[int]) -> None:
    """What AISBench prints meanwhile."""
    while True:
        sent, done = counts
        print(f"\rPOST={sent} (1.0/s)  RECV={done} (1.0/s)  FAIL=0 (0.0/s)  FIN={done} (1.0/s)   ")
        time.sleep(0.2)


def performance(place: Path, name: str, found: list[dict[str, Any]], took: float) -> None:
    """The files of a performance run."""
    place.mkdir(parents=True)
    good = [entry for entry in found if not entry["error"]]
    lines = [
        {
            "id": number,
            "success": not entry["error"],
            "error_info": entry["error"],
            "input_tokens": 5,
            "output_tokens": entry["tokens"],
            "prediction": entry["text"],
        }
        for number, entry in enumerate(found)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / f"{name}_details.jsonl").write_text(text)
    if not good:
        return
    table = ["Performance Parameters,Stage,Average,Min,Max,Median,P75,P90,P99,N"]
    for row in ("e2el", "ttft"):
        values = sorted(1000 * entry[row] for entry in good)
        shown = [statistics.mean(values), values[0], values[-1], *[values[len(values) // 2]] * 4]
        cells = ",".join(f"{value:.1f} ms" for value in shown)
        table.append(f"{row.upper()},total,{cells},{len(values)}")
    (place / f"{name}.csv").write_text("\n".join(table) + "\n")
    rate = sum(entry["tokens"] for entry in good) / took
    totals = {
        "Total Requests": len(found),
        "Failed Requests": len(found) - len(good),
        "Request Throughput": f"{len(good) / took:.4f} req/s",
        "Output Token Throughput": f"{rate:.4f} token/s",
        "Total Token Throughput": f"{2 * rate:.4f} token/s",
    }
    text = json.dumps({key: {"total": value} for key, value in totals.items()}, indent=4)
    (place / f"{name}.json").write_text(text)


def accuracy(
    work: Path, model: str, name: str, rows: list[Any], found: list[dict[str, Any]]
) -> None:
    """The files of an accuracy run."""
    wanted = [row["answer"].rpartition("#### ")[2].strip() for row in rows]
    right = [f"answer: {w} " in entry["text"] for w, entry in zip(wanted, found, strict=True)]
    for folder in (work / "predictions" / model, work / "summary"):
        folder.mkdir(parents=True)
    lines = [
        {"id": n, "success": not entry["error"], "prediction": entry["text"]}
        for n, entry in enumerate(found)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (work / "predictions" / model / f"{name}.jsonl").write_text(text)
    score = f"{100 * sum(right) / len(right):.2f}"
    head = f"dataset,version,metric,mode,{model}\n"
    (work / "summary" / f"summary_{work.name}.csv").write_text(
        f"{head}{name},271d0b,accuracy,gen,{score}\n"
    )


def main(argv: Sequence[str]) -> int:
    """The command line."""
    if "-h" in argv or "--help" in argv:
        return 0
    config = json.loads(Path(argv[0]).read_text())
    [model], [data] = config["models"], config["datasets"]
    work = Path(option(argv, "--work-dir")) / time.strftime("%Y%m%d_%H%M%S")
    file = Path(data["path"], "test.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = rows[: int(option(argv, "--num-prompts") or len(rows))]
    ask(model, "warm up")
    began = time.monotonic()
    counts = [0, 0]
    threading.Thread(target=bars, args=(counts,), daemon=True).start()
    with ThreadPoolExecutor(int(model["batch_size"])) as pool:
        found = list(pool.map(lambda row: counted(model, row["question"], counts), rows))
    took = time.monotonic() - began
    if config["summarizer"]["attr"] == "performance":
        performance(work / "performances" / model["abbr"], data["abbr"], found, took)
    else:
        accuracy(work, model["abbr"], data["abbr"], rows, found)
    print("results are in", work, flush=True)
    return int(all(entry["error"] for entry in found))
