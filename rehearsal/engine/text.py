"""The little "model": a rough tokenizer, and answers that depend on the prompt alone. Pure."""

from __future__ import annotations

import re
import zlib
from typing import Any

_TOKEN = re.compile(r"\w{1,5}|[^\w\s]")
_SUM = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:\s*[-+*/x×÷]\s*\d+(?:\.\d+)?)+)")
_SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "la",
    "me",
    "ni",
    "po",
    "ru",
    "sa",
    "te",
    "vi",
    "wo",
    "zu",
    "ka",
]
WORDS = [a + b for a in _SYLLABLES for b in _SYLLABLES]


def count_tokens(prompt: Any) -> int:
    """Tokens of a text, of several, or of a list of token ids; at least 1."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        return sum(map(count_tokens, prompt))
    if isinstance(prompt, list):
        return max(1, len(prompt))
    return max(1, len(_TOKEN.findall(prompt)))


def split_tokens(text: str) -> list[str]:
    """The pieces of a text, one a token; joined they give the text back."""
    pieces: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        pieces.append(text[end : match.end()])
        end = match.end()
    if pieces and end < len(text):
        pieces[-1] += text[end:]
    return pieces


def arithmetic(prompt: str) -> str | None:
    """The value of the last arithmetic expression in a text, as text; None when there is none."""
    found = _SUM.findall(prompt)
    if not found:
        return None
    parts = re.findall(r"\d+(?:\.\d+)?|[-+*/x×÷]", found[-1])
    terms, signs = [float(parts[0])], ["+"]
    for sign, number in zip(parts[1::2], parts[2::2], strict=True):
        if sign in "*x×":
            terms[-1] *= float(number)
        elif sign in "/÷":
            if not float(number):
                return None
            terms[-1] /= float(number)
        else:
            terms.append(float(number))
            signs.append(sign)
    total = sum(-term if sign == "-" else term for sign, term in zip(signs, terms, strict=True))
    return str(int(total)) if total == int(total) else f"{total:.6g}"


def answer(prompt: Any, most: int, least: int, to_the_end: bool) -> tuple[list[str], str]:
    """The pieces (one a token) of the answer to a prompt, and the finish reason.

    `most` tokens when `to_the_end` (ignore_eos), else it stops where the answer ends, but not
    before
    `least` tokens; the reason is `length` when the limit cut it, else `stop`.
    """
    text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
    seed = zlib.crc32(text.encode(errors="replace"))
    result = arithmetic(text)
    pieces = (
        split_tokens(f"The answer is {result}.\nanswer: {result}\n#### {result}") if result else []
    )
    natural = len(pieces) or 24 + seed % 41
    wanted = most if to_the_end else min(most, max(natural, least))
    while len(pieces) < wanted:
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        pieces.append((" " if pieces else "") + WORDS[seed >> 8 & 0xFF])
    return pieces[:wanted], "length" if wanted == most else "stop"
