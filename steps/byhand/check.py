"""check: one completion through the endpoint of a fleet that is up.

Enters: a :class:`NodeRun` on the leader. Leaves: the check ``completion``. Touches: asks the
endpoint. ``wait`` does it too; this asks again.
"""

from __future__ import annotations

from steps import wait
from steps.core.node import alone

main = alone.step("check", __doc__, lambda _: [("probe", wait.completion)], needs=True)

if __name__ == "__main__":
    raise SystemExit(main())
