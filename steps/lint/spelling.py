"""Whether a word is another one misspelled.

Enters: two words. Leaves: yes or no. Touches nothing.
"""

from __future__ import annotations


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
