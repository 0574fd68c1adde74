"""plan: ``steps.resolve`` with the tools that a run on this machine needs, built first.

Enters: a case and where it would run. Leaves: a run directory with the plan. Touches: that
directory; builds the environments of tools once. Nothing is started.
"""

from __future__ import annotations

from ci.backends import Request, local
from steps import resolve
from steps.core import door
from steps.core.case.case import Case
from steps.core.node import alone
from steps.core.node.wishes import Wishes
from steps.core.plan.plan import Plan
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir


def _local(case: Case, run_dir: RunDir, asked: Wishes) -> Plan:
    """The plan that ``nox -s multinode`` would make on this machine."""
    events = EventLog(None, asked.run, -1, listeners=[alone.printer()])
    return local.make_plan(Request(case, asked.run, run_dir, events, asked))


main = door.Verb(
    "plan", resolve.__doc__, resolve.options, lambda arguments: resolve.work(arguments, _local)
)

if __name__ == "__main__":
    raise SystemExit(main())
