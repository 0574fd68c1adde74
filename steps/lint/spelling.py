"""Words: whether one is another misspelled, and how a message shows a long one.

Enters: words. Leaves: yes or no, or a shorter one. Touches nothing.
"""

from __future__ import annotations

#: Words that people write for a switch.
TRUE = ("true", "1", "yes", "on", "t", "y")
FALSE = ("false", "0", "no", "off", "f", "n")


def one_away(left: str, right: str) -> bool:
    """One letter more, less, another, or two exchanged; a digit is never a slip of the pen."""
    if len(left) > len(right):
        left, right = right, left
    start = 0
    while start < len(left) and left[start] == right[start]:
        start += 1
    if len(left) == len(right):
        rest_left, rest_right = left[start + 1 :], right[start + 1 :]
        if rest_left == rest_right:
            return not (left[start:].isdigit() or right[start:].isdigit())
        swapped = left[start : start + 2][::-1] == right[start : start + 2]
        return swapped and left[start + 2 :] == right[start + 2 :]
    return left[start:] == right[start + 1 :] and not right[start].isdigit()


def shortened(text: str) -> str:
    """A word as a message shows it."""
    return text if len(text) <= 60 else f"{text[:57]}..."
