"""What vLLM's own log says of a death, beyond the signatures of failures.

Enters: a line. Leaves: ranks. Touches nothing. The signatures are data
(``steps/core/record/data/signatures.yaml``).
"""

from __future__ import annotations

import re

#: Questions of our own in an access log: who answers them need not be at work.
OUR_QUESTIONS = re.compile(rb'"GET /(?:metrics|health) HTTP/')
#: How vLLM names the engine process that died (v1/engine/core_client.py, v1/engine/utils.py).
_DEAD_RANK = re.compile(r"(?:Engine core proc |Failed core proc\(s\): .*?)EngineCore_DP(\d+)")


def dead_ranks(line: str) -> list[int]:
    """The data-parallel ranks whose engine a line calls dead."""
    return [int(rank) for rank in _DEAD_RANK.findall(line)]
