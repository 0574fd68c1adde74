"""checks: the checks of content that the case asks for, on a fleet that is up.

Enters: a :class:`NodeRun` on the leader. Leaves: a check for each. Touches: asks the endpoint.
Those that look at the benchmarks are made by ``bench``.
"""

from __future__ import annotations

from steps import checks
from steps.core.node import alone

main = alone.step("checks", __doc__, lambda _: [("checks", checks.before)], needs=True)

if __name__ == "__main__":
    raise SystemExit(main())
