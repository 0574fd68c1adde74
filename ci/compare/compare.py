"""compare: two variants of one case on the same nodes, and whether B is worse.

Enters: a case, and what A and B change in it. Leaves: a directory with a run for each start,
``compare.json``, and the exit code: 0 B is no worse, 1 it is worse, 3 the odds do not say.
Touches: what ``ci.run`` touches.

    nox -s compare -- CASE --b-set 'env_common.VLLM_USE_V2=1' --on local
    nox -s compare -- CASE --b-set 'deployment.1.server_cmd+= --enforce-eager' --rehearse
    nox -s compare -- CASE --b-set ... --metric output_throughput --budget 600

What follows is passed on to ``ci.run``. A and B take turns, A B B A, each with a fleet of its
own; repeats are measured on a warm one. A start that the infrastructure failed is made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ci.compare import trial
from ci.compare.pair import Finding, Judged, Pair, Started
from ci.compare.trial import Variant
from steps.core import door, foreign
from steps.core.case.gates import METRICS
from steps.core.errors import InfraError, UsageError
from steps.core.node import wishes
from steps.core.record.rundir import new_run_id, write_json

#: Looked at unless others are named.
USUAL = ("output_throughput", "ttft_p99_ms", "tpot_mean_ms")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    for side in "ab":
        parser.add_argument(
            f"--{side}-set",
            action="append",
            default=[],
            metavar="PATH=VALUE",
            help=f"what {side.upper()} changes in the case; PATH+=TEXT adds to a text",
        )
    parser.add_argument("--metric", action="append", default=[], help=f"default: {USUAL}")
    parser.add_argument("--margin", type=float, default=2.0, help="a loss that matters, in percent")
    parser.add_argument("--starts", type=int, default=10, help="of each variant at most")
    parser.add_argument("--repeats", type=int, default=2, help="measurements on each warm fleet")
    parser.add_argument("--budget", type=float, help="in device minutes; default: no limit")
    parser.add_argument("--dir", type=Path, help="default: runs/compare-<id>")


def run(arguments: argparse.Namespace) -> int:
    """Compare, and say what was found."""
    case = wishes.find_case(arguments.case)
    words = (*(("--only", arguments.only) if arguments.only else ()), *arguments.more)
    variants = [
        Variant(side.upper(), tuple(getattr(arguments, f"{side}_set")), words) for side in "ab"
    ]
    if variants[0].settings == variants[1].settings:
        raise UsageError("A and B are the same", "Say what B changes: --b-set PATH=VALUE.")
    if arguments.starts < 3 or arguments.repeats < 1:
        raise UsageError("--starts: expected at least 3, --repeats at least 1")
    asked = arguments.metric or USUAL
    unknown = [metric for metric in asked if metric not in METRICS]
    if unknown:
        raise UsageError(
            f"--metric: {unknown[0]!r} is unknown", f"There are: {', '.join(METRICS)}."
        )
    home = arguments.dir or Path("runs") / f"compare-{new_run_id()}"
    if home.exists() and any(home.iterdir()):
        raise UsageError(f"{home} holds something else", "Name another --dir.")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    door.keep_in(home)
    for variant in variants:
        trial.write(case, variant, arguments.repeats, home / f"{variant.name}.yaml", arguments.only)
    starts = Starts(home, variants, asked, arguments)
    starts.carry_out()
    return starts.conclude()


class Starts:
    """The starts of one comparison, one after another."""

    def __init__(
        self,
        home: Path,
        variants: Sequence[Variant],
        metrics: Sequence[str],
        arguments: argparse.Namespace,
    ) -> None:
        self._home, self._variants, self._metrics = home, variants, metrics
        self._margin, self._most = arguments.margin / 100, arguments.starts
        self._purse = trial.Purse(arguments.budget)
        self._seen: list[Started] = []

    @property
    def pair(self) -> Pair:
        """The rules, with each metric that a start has measured."""
        names = {name for one in self._seen for name in one.values}
        wanted = sorted(name for name in names if name.split()[-1] in self._metrics)
        rules = {name: METRICS[name.split()[-1]][1] for name in wanted}
        return Pair(rules, self._margin, starts=(3, self._most))

    def carry_out(self) -> None:
        """Start variants until the odds or the budget say enough."""
        self._say(f"at most {2 * self._most} starts{self._limit()}; runs in {self._home}")
        unfit = number = 0
        while (turn := self.pair.turn(self._seen)) is not None and self._purse.affords:
            number += 1
            name = self._variants[turn].name
            directory = self._home / f"{number:02d}-{name}"
            words = self._variants[turn].words
            began = time.monotonic()
            one = trial.start(self._home / f"{name}.yaml", turn, words, directory)
            self._purse.pay(directory, time.monotonic() - began)
            if one is None:
                unfit += 1
                self._say(f"{directory.name}: the infrastructure failed it; it does not count")
                if unfit >= trial.UNFIT:
                    raise InfraError(
                        f"{unfit} starts failed for reasons that are not the product's",
                        f"{directory.with_suffix('.log')} has the last one's output.",
                    )
                continue
            self._seen.append(one)
            self._say(f"{directory.name}: {one.failure or self._values(one)}")

    def _values(self, one: Started) -> str:
        told = [f"{name} {sum(v) / len(v):.6g}" for name, v in one.values.items()]
        return ", ".join(text for text in told if text.split()[-2] in self._metrics)

    def _limit(self) -> str:
        limit = self._purse.limit
        return f", {limit:g} device minutes" if limit is not None else ""

    def conclude(self) -> int:
        """Write ``compare.json``, print the table; the exit code."""
        pair = self.pair
        judged, finding = pair.judged(self._seen), pair.finding(self._seen)
        write_json(
            self._home / "compare.json",
            {
                "schema": 1,
                "finding": finding.name.lower(),
                "margin": self._margin,
                "device_minutes": round(self._purse.total, 2),
                "variants": [asdict(variant) for variant in self._variants],
                "metrics": [to_dict(one) for one in judged],
                "starts": [asdict(one) for one in self._seen],
            },
        )
        for one in judged:
            self._say(line(one))
        words = {
            Finding.NO_WORSE: "B is no worse than A",
            Finding.WORSE: "B is worse than A",
            Finding.UNKNOWN: "cannot tell within the budget whether B is worse than A",
        }
        self._say(
            f"{words[finding]} ({len(self._seen)} starts, {self._purse.total:.1f} device minutes)"
        )
        return finding.value

    def _say(self, text: str) -> None:
        print(foreign.block(text), flush=True)


def line(one: Judged) -> str:
    """One row for people."""
    if one.effect is None:
        told = f"A {sum(one.a):g} of {len(one.a)}, B {sum(one.b):g} of {len(one.b)}"
        return f"  {one.name}: {one.finding.name.lower().replace('_', ' ')}; {told}; p {one.p:.3g}"
    effect = one.effect
    return (
        f"  {one.name}: {one.finding.name.lower().replace('_', ' ')}; B is "
        f"{100 * effect.estimate:+.1f} % better ({100 * effect.low:+.1f} to "
        f"{100 * effect.high:+.1f} %); p {one.p:.3g}, {one.test.value}"
    )


def to_dict(one: Judged) -> dict[str, object]:
    """As ``compare.json`` has it."""
    return {
        "name": one.name,
        "finding": one.finding.name.lower(),
        "a": one.a,
        "b": one.b,
        "effect": asdict(one.effect) if one.effect else None,
        "p": one.p,
        "test": one.test.value,
    }


main = door.Verb("compare", __doc__, _options, run, more=True)

if __name__ == "__main__":
    sys.exit(main())
