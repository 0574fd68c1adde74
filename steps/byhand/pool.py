"""pool: start the KV pool of a fleet and hold it; ``serve`` does it too where nobody has.

Enters: a :class:`NodeRun` on the leader. Leaves: the running pool. Touches: starts that process.
"""

from __future__ import annotations

from steps import serve
from steps.core.node import alone

main = alone.step("pool", __doc__, lambda _: [("pool", serve.pool)], kinds=("pool",))

if __name__ == "__main__":
    raise SystemExit(main())
