"""Measurements of one benchmark on a warm fleet, each of which finds the caches as the first did.

Enters: a run on the leader, a benchmark, places. Leaves: a :class:`Measurement` for each place.
Touches: what the driver touches; asks the engines for their counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steps import bench_drivers
from steps.bench_drivers import Job, Measurement, acceptance, caches, goodput, pressure
from steps.core.node.noderun import NodeRun
from steps.core.plan import drivers
from steps.core.plan.plan import BenchmarkPlan
from steps.core.record.records import Check

#: Of several loads the larger ask more often for what their prompts share.
LOADS = 0.15


class Series:
    """Measurements of one benchmark, each of which finds the caches as the first did.

    Args:
        earlier: measurements that an earlier step has made on the same fleet.
    """

    def __init__(self, run: NodeRun, number: int, driver: drivers.Driver, earlier: int) -> None:
        self._earlier = earlier
        self.found: list[Measurement] = []
        self.way = ""
        self._run, self._number = run, number
        self._entry = run.plan.benchmarks[number]
        self._measure = bench_drivers.implementation(driver).measure
        self._varies = driver.other_prompts
        self._first: float | None = None
        asked = self._entry.benchmark
        confirms = asked.confirm > 0 and not self._entry.skip_gates
        several = asked.repeat > 1 or confirms or asked.sized
        self._again = asked.case_type == "performance" and several
        self._sized, self._slack = asked.sized, LOADS if asked.sized else caches.TOLERANCE
        self._drafts = any(run.plan.drafting())

    def take(
        self, places: Sequence[Path], *, confirms: bool, entry: BenchmarkPlan | None = None
    ) -> None:
        """Measure into each place; ends early at an error, and where the caches stay warm.

        Args:
            entry: the same benchmark with another load.
        """
        entry = entry or self._entry
        run = self._run
        for place in places:
            run.begin_budget("bench")
            number = self._earlier + len(self.found)
            way = caches.Way(True, "")
            if number or self._sized:
                way = caches.way(
                    run.plan,
                    self._number,
                    self._varies,
                    run.sleep,
                    confirms=confirms,
                    always=self._sized,
                )
                self.way = way.text if way.ok else f"not measured again: {way.text}"
                if not way.ok and self.found:
                    return
                if not way.ok:
                    self.way = f"measured on caches that an earlier step warmed: {way.text}"
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = caches.given(run.plan) if self._again else None
            job = Job(entry, run.plan.endpoint, place, number if way.prompts else 0)
            drafted = acceptance.read(run.plan) if self._drafts else None
            pressed = pressure.Watch(run.plan, place) if pressure.wanted(entry) else None
            try:
                measured = self._measure(run, job)
            finally:
                told_by_engines = pressed.read() if pressed else {}
            run.check_end()
            if told_by_engines and measured.metrics:
                measured = replace(measured, metrics={**measured.metrics, **told_by_engines})
            measured = goodput.added(measured, self._entry, place)
            if drafted is not None:
                told = acceptance.between(drafted, acceptance.read(run.plan))
                measured = _with_acceptance(measured, told, self._entry.benchmark.case_type)
            share = caches.share(before, caches.given(run.plan)) if before else None
            if not self.found:
                self._first = share
            elif way.text and _whole(measured) and caches.warmer(self._first, share, self._slack):
                self.way = (
                    f"measured again ({way.text}), which does not count: the caches gave it "
                    f"{100 * (share or 0):.0f} % of its prompt tokens, the first "
                    f"{100 * (self._first or 0):.0f} %"
                )
                return
            self.found.append(measured)
            if measured.error or measured.skipped:
                return


def _whole(measured: Measurement) -> bool:
    return not measured.error and all(check.status != "fail" for check in measured.checks)


def _with_acceptance(
    measured: Measurement, told: acceptance.Drafts | str, case_type: str
) -> Measurement:
    """A measurement with the share of drafts that was accepted, or the reason why nobody knows."""
    needed = case_type == "spec_decode"
    if isinstance(told, str):
        check = Check(acceptance.CHECK, "fail" if needed else "skipped", told)
        return replace(measured, checks=(*measured.checks, check))
    if needed:  # an accuracy run whose score is not looked at
        kept = tuple(check for check in measured.checks if check.name != "score")
        measured = replace(measured, checks=kept)
    return replace(measured, metrics={**measured.metrics, **told.rates})
