"""An engine of the tests' own, and what a fleet has beside it.

Enters: command lines, and the words in ``TEST_ENGINE``. Leaves: servers that speak as vLLM does.
Touches: the sockets they are told of, their standard output.

The product does not know it and it knows nothing of the product: ``bin`` goes first on PATH, and
a run takes it for the real thing. Standard library only. Words of ``TEST_ENGINE``:

``load=S``          seconds until it listens
``ttft=S itl=S``    seconds before the first token, and between tokens
``warm=F``          factor on ``ttft`` for a prompt it has seen (a prefix cache)
``fail=A-B``        completions A to B answer 500
``wrong``           sums are answered one too high
``crash=WHEN``      ends with ``code=N``, below 0 by that signal; WHEN is start, load, request:N
``hang=WHEN``       answers nothing any more, and lives on
``log_mb=N``        writes so much, in lines, before it listens; ``dashes=KB`` one line of dashes
``says=BASE64``     prints these bytes before it listens
``stray=KIND``      leaves a child: plain, session (setsid), bare (setsid, no environment)
``short``           answers have a token less than asked; ``mute`` no text but sums
``accepts=R``       drafts are accepted at this rate; ``blind`` no metrics of drafts
``forgets``         the proxy hands no KV over; ``master=S``, ``master_code=N``: the pool's master
==================  ==========================================================================
=======
=====================  =======================================================================
``load=S``             seconds until it listens
``ttft=S itl=S``       seconds before the first token, and between tokens
``warm=F``             factor on ``ttft`` for a prompt it has seen (a prefix cache)
``fail=A-B``           completions A to B answer 500
``wrong``              sums are answered one too high
``crash=WHEN``         ends with ``code=N``, below 0 by that signal; WHEN is start, load, request:N
``hang=WHEN``          answers nothing any more, and lives on
``stick=N``            completion N stops after two pieces of text; the others go on
``says=FILE``          writes what is in a file before it listens
``environment=FILE``   writes its environment there
``log_mb=N``           writes so much, in lines, before it listens; ``dashes=KB`` one line of dashes
``stray=KIND``         leaves a child: plain, session (setsid), bare (setsid, no environment)
``litter``             leaves files with odd names, a FIFO, a socket, a link out of its directory;
                       ``litter=alone`` ends its node program then
``forgets``            the proxy hands no KV over; ``master=S``, ``master_code=N``: of the pool
=====================  =======================================================================
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def words(variable: str = "TEST_ENGINE") -> dict[str, str]:
    """The words of a variable."""
    pairs = (word.partition("=") for word in os.environ.get(variable, "").split())
    return {name: value for name, _, value in pairs}


def option(argv: Sequence[str], name: str, default: str = "") -> str:
    """The value of an option."""
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return default


def listed(argv: Sequence[str], name: str) -> list[str]:
    """All values of an option that takes several."""
    found: list[str] = []
    if name not in argv:
        return found
    for word in argv[list(argv).index(name) + 1 :]:
        if word.startswith("--"):
            break
        found.append(word)
    return found
