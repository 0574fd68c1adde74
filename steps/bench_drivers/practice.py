"""Small stand-ins for data sets and tokenizers, for rehearsals and small models.

Enters: a directory, a seed, sizes. Leaves: a data set in the format of a
family of AISBench's, or a tokenizer that ``transformers`` loads. Touches only
files in that directory; the same seed and sizes give the same bytes anywhere.
"""

from __future__ import annotations

import base64
import csv
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from steps.core.case.numbers import dumps

LARGEST = 20
"""Operands are 1 to this: what SmolLM2-135M sometimes gets right: the score can move."""

# The smallest JPEG: one grey pixel.
_PIXEL = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////"
    "////////////////////////////////wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAA"
    "AAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AP//Z"
)


def picture() -> bytes:
    """A picture."""
    return base64.b64decode(_PIXEL)


def questions(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Sums and differences in GSM8K's format, none twice while there are others left."""
    pairs = [
        (a, b, sign)
        for a in range(1, LARGEST + 1)
        for b in range(1, LARGEST + 1)
        for sign in "+-"
        if a >= b
    ]
    source = random.Random(seed)
    for start in range(0, count, len(pairs)):
        for a, b, sign in source.sample(pairs, min(len(pairs), count - start)):
            result = a + b if sign == "+" else a - b
            yield {
                "question": f"What is {a} {sign} {b}?",
                "answer": f"{a} {sign} {b} = {result}\n#### {result}",
            }


def write_arithmetic(directory: Path, *, seed: int = 0, test: int = 64, train: int = 8) -> Path:
    """Write GSM8K's two files and return the directory.

    Args:
        test: questions to ask; `train` those for few-shot examples, which no case of ours uses.

    Raises:
        ValueError: a size below 1: AISBench does not start on an empty file.
        OSError: the directory cannot be written.
    """
    if test < 1 or train < 1:
        raise ValueError(
            f"a data set needs a question in both files, found test={test}, train={train}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    every = [dumps(question) + "\n" for question in questions(seed, train + test)]
    (directory / "train.jsonl").write_text("".join(every[:train]), encoding="utf-8")
    (directory / "test.jsonl").write_text("".join(every[train:]), encoding="utf-8")
    return directory


def _gsm8k(directory: Path, count: int) -> None:
    write_arithmetic(directory, test=count)


def _aime2025(directory: Path, count: int) -> None:
    lines = [
        dumps({"question": item["question"], "answer": _result(item)}) + "\n"
        for item in questions(0, count)
    ]
    (directory / "aime2025.jsonl").write_text("".join(lines), encoding="utf-8")


def _gpqa(directory: Path, count: int) -> None:
    """Question and choices stand in columns 8 to 12, the right one first."""
    text = io.StringIO()
    table = csv.writer(text)
    pad = [""] * 7
    table.writerow([*pad, "Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in "123")])
    for item in questions(0, count):
        right = int(_result(item))
        table.writerow([*pad, item["question"], right, right + 1, right + 2, right + 3])
    (directory / "gpqa_diamond.csv").write_text(text.getvalue(), encoding="utf-8")


def _textvqa(directory: Path, count: int) -> None:
    images = directory / "train_images"
    images.mkdir(exist_ok=True)
    (images / "pixel.jpg").write_bytes(picture())
    lines, answers = [], []
    for number, item in enumerate(questions(0, count)):
        image = "data/textvqa/train_images/pixel.jpg"
        entry = {"question_id": number, "question": item["question"], "image": image}
        lines.append(dumps(entry) + "\n")
        given = [{"answer": _result(item), "answer_id": vote} for vote in range(10)]
        answers.append({"question_id": number, "answers": given})
    (directory / "textvqa_val.jsonl").write_text("".join(lines), encoding="utf-8")
    (directory / "textvqa_val_annotations.json").write_text(
        dumps({"annotations": answers}), encoding="utf-8"
    )


def _result(item: dict[str, str]) -> str:
    return item["answer"].rpartition("#### ")[2]


FAMILIES: dict[str, Callable[[Path, int], None]] = {
    "gsm8k": _gsm8k,
    "aime2025": _aime2025,
    "gpqa": _gpqa,
    "textvqa": _textvqa,
}


def write_dataset(family: str, directory: Path, count: int) -> Path:
    """Write ``count`` questions in a family's format and return the directory.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    FAMILIES[family](directory, count)
    return directory


def write_tokenizer(directory: Path) -> Path:
    """Write a tokenizer of words and signs, as a ``tokenizers`` file, and return the directory.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    unknown = {
        "id": 0,
        "content": "<unk>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [unknown],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "chat_template": "{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
    }
    (directory / "tokenizer.json").write_text(dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(dumps(settings), encoding="utf-8")
    return directory
