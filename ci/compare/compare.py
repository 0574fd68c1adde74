"""compare: two variants of one case on the same nodes, and whether B is worse.

Enters: a case, and what A and B change in it. Leaves: a directory with a run for each start,
``compare.json``, and the exit code: 0 B is no worse, 1 it is worse, 3 the odds do not say.
Touches: what ``ci.run`` touches.

    nox -s compare -- CASE --a vllm-ascend=v0.30.0 --b vllm-ascend=pr/123 --on k8s
    nox -s compare -- CASE --a image=IMAGE1 --b image=IMAGE2 --on k8s
    nox -s compare -- CASE --b-set 'env_common.VLLM_USE_V2=1' --on local --budget 600
    nox -s compare -- CASE --b-set 'deployment.1.server_cmd+= --enforce-eager' --rehearse
    nox -s compare -- CASE                       what the case lists as ``variants``

What follows is passed on to ``ci.run``. A and B take turns, A B B A, each with a fleet of its
own; repeats are measured on a warm one. A start that the infrastructure failed is made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ci.compare import axis, pages, trial
from ci.compare.pair import Finding, Judged, Pair, Started, worst
from ci.report import closing
from steps.core import door, foreign
from steps.core.case.build import load_case
from steps.core.case.case import Against, Case, Variant
from steps.core.case.gates import METRICS
from steps.core.errors import InfraError, UsageError
from steps.core.node import wishes
from steps.core.plan import products
from steps.core.record.rundir import new_run_id, write_json
from steps.core.redaction import here

#: Looked at unless others are named.
USUAL = ("output_throughput", "ttft_p99_ms", "tpot_mean_ms")
#: The product that a reference without a name is one of.
PLAIN = "vllm-ascend"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    for side in "ab":
        who = side.upper()
        refs = f"the product of {who}: a REF is one of {PLAIN}; or image=IMAGE"
        sets = f"what {who} changes in the case; PATH+=TEXT adds to a text"
        for option, metavar, text in (
            (side, "[NAME=]REF", refs),
            (f"{side}-set", "PATH=VALUE", sets),
        ):
            parser.add_argument(
                f"--{option}", action="append", default=[], metavar=metavar, help=text
            )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        help=f"METRIC, or one benchmark's: 'BENCHMARK METRIC'; default: {USUAL}",
    )
    for name, least, kind, default, text in (
        ("margin", 0, float, 2.0, "a loss that matters, in percent"),
        ("starts", 3, int, 10, "of each variant at most"),
        ("repeats", 1, int, 2, "measurements on each warm fleet"),
    ):
        number = door.at_least(least, kind)
        parser.add_argument(f"--{name}", type=number, default=default, help=text)
    parser.add_argument(
        "--budget", type=door.at_least(0.01), help="in device minutes; default: no limit"
    )
    parser.add_argument("--dir", type=Path, help="default: runs/compare-<id>")


@dataclass(frozen=True)
class Two:
    """A comparison: two variants, and what must hold between them.

    Attributes:
        gates: those of B against A; none: whatever metrics were asked for are no worse.
    """

    variants: tuple[Variant, Variant]
    gates: tuple[Against, ...] = ()

    @property
    def name(self) -> str:
        """Of its directory, where there are several."""
        return f"{self.variants[1].name}-against-{self.variants[0].name}"


@trial.stoppable()
def run(arguments: argparse.Namespace) -> int:
    """Compare, and say what was found."""
    case = wishes.find_case(arguments.case)
    every = comparisons(case, arguments)
    unknown = [one for one in arguments.metric if one.rpartition(" ")[2] not in METRICS]
    if unknown:
        raise UsageError(
            f"--metric: {unknown[0]!r} is unknown", f"There are: {', '.join(METRICS)}."
        )
    only = {one.rpartition(" ")[0] for one in arguments.metric}
    benchmark = min(only) if len(only) == 1 else ""
    home = arguments.dir or Path("runs") / f"compare-{new_run_id()}"
    if home.exists() and any(home.iterdir()):
        raise UsageError(f"{home} holds something else", "Name another --dir.")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    door.keep_in(home)
    purse, found = trial.Purse(arguments.budget), []
    all_starts = []
    for two in every:
        where = home / two.name if len(every) > 1 else home
        where.mkdir(exist_ok=True)
        for one in two.variants:
            target = where / f"{one.name}.yaml"
            trial.write(case, one.settings, arguments.repeats, target, arguments.only, benchmark)
            if not two.gates and not arguments.metric:
                _measures(load_case(target, only=arguments.only))
        all_starts.append(Starts(where, two, purse, arguments))
    for starts in all_starts:
        try:
            starts.carry_out()
        finally:  # what was measured is kept, whatever ended it
            if starts.told:
                found.append(starts.conclude())
    return worst(found).value


def comparisons(case: Path, arguments: argparse.Namespace) -> list[Two]:
    """What is compared: what the command line says, else what the case lists.

    Raises:
        UsageError: nothing is, or it is twice the same.
    """
    given = {}
    for side in "ab":
        refs = axis.named(f"--{side}", getattr(arguments, side), PLAIN)
        image = refs.pop(axis.IMAGE, "")
        words = tuple(f"{name}={ref}" for name, ref in refs.items())
        settings = tuple(getattr(arguments, f"{side}_set"))
        given[side] = Variant(side.upper(), settings, words, image)
    if replace(given["a"], name="B") != given["b"]:
        return [Two((given["a"], given["b"]))]
    listed = {one.name: one for one in load_case(case, only=arguments.only).variants}
    if given["a"] != Variant("A") or len(listed) < 2:
        hint = "Say what B changes: --b REF, --b-set PATH=VALUE, or variants: in the case."
        raise UsageError("A and B are the same", hint)
    every = [
        Two((listed[of], one), tuple(gate for gate in one.gates if gate.of == of))
        for one in listed.values()
        for of in dict.fromkeys(gate.of for gate in one.gates)
    ]
    first, *rest = listed.values()
    return every or [Two((first, one)) for one in rest]


def _measures(case: Case) -> None:
    """Refuse a case of which the usual metrics are not known, before a fleet is started for it."""
    if not any(entry.case_type == "performance" for entry in case.benchmarks):
        raise UsageError(
            "the case measures no performance", "Say what to compare, such as --metric accuracy."
        )


def pinned(variant: Variant, more: Sequence[str]) -> list[str]:
    """Options of ``ci.run`` for a variant: every start of it gets the commits of now.

    Raises:
        UsageError: there is no such product or reference; nothing was started yet.
    """
    parser = door.passing()
    parser.add_argument("--profile", default="")
    parser.add_argument("--product", action="append", default=[])
    given, words = parser.parse_known_args(more)
    asked = wishes.Wishes(product=(*given.product, *variant.products), profile=given.profile)
    words += ["--profile", given.profile] if given.profile else []
    for product in asked.with_products().products:
        words += ["--product", f"{product.name}={products.entry(product)['ref']}"]
    return words + (["--image", variant.image] if variant.image else [])


class Starts:
    """The starts of one comparison, one after another."""

    def __init__(
        self, home: Path, two: Two, purse: trial.Purse, arguments: argparse.Namespace
    ) -> None:
        self._home, self._variants, self._gates = home, two.variants, two.gates
        self._asked: list[str] = [gate.metric for gate in two.gates] or arguments.metric
        self._margin, self._most = arguments.margin / 100, arguments.starts
        self._purse = purse
        only = ("--only", arguments.only) if arguments.only else ()
        self._words = [[*only, *pinned(one, arguments.more)] for one in two.variants]
        self._seen: list[Started] = []
        self._over = False

    @property
    def told(self) -> bool:
        """Whether there is something to say: it went to its end, or something was measured."""
        return self._over or bool(self._seen)

    @property
    def pair(self) -> Pair:
        """The rules, with each metric that a start has measured, and each that one has to."""
        names = sorted({name for one in self._seen for name in one.values})
        wanted = self._asked or USUAL
        measured = [name for name in names if name in wanted or name.split()[-1] in wanted]
        rules = [*measured, *self._lacking(measured)]
        shares = {gate.metric: gate.share for gate in self._gates}
        limits = {
            name: (share - 1) * (1 if METRICS[name.split()[-1]][1] else -1)
            for name in rules
            if (share := shares.get(name.split()[-1])) is not None
        }
        better = {name: METRICS[name.split()[-1]][1] for name in rules}
        return Pair(better, self._margin, starts=(3, self._most), limits=limits)

    def _lacking(self, measured: Sequence[str]) -> list[str]:
        """Metrics without which nothing can be said, and that no start has measured."""
        there = {*measured, *(name.split()[-1] for name in measured)}
        wanted = self._asked or ([] if there & {*USUAL} else USUAL[:1])
        return [metric for metric in wanted if metric not in there]

    def carry_out(self) -> None:
        """Start variants until the odds or the budget say enough."""
        self._say(f"at most {2 * self._most} starts{self._limit()}; runs in {self._home}")
        unfit = number = 0
        while (turn := self.pair.turn(self._seen)) is not None and self._purse.affords:
            number += 1
            variant = self._variants[turn]
            directory = self._home / f"{number:02d}-{variant.name}"
            began = time.monotonic()
            one = trial.start(
                self._home / f"{variant.name}.yaml", turn, self._words[turn], directory
            )
            self._purse.pay(directory, time.monotonic() - began)
            if one is None:
                unfit += 1
                why = trial.reason(directory)
                self._say(f"{directory.name}: does not count, infrastructure: {why}")
                if unfit >= trial.UNFIT:
                    raise InfraError(
                        f"{unfit} starts failed for reasons that are not the product's",
                        f"{directory.with_suffix('.log')} has the last one's output.",
                    )
                continue
            self._seen.append(one)
            self._say(f"{directory.name}: {one.failure or self._values(one)}")
            if one.values and (absent := self._lacking([*one.values])):
                has = ", ".join(dict.fromkeys(name.split()[-1] for name in one.values))
                raise UsageError(f"the case does not measure {absent[0]}", f"It measures: {has}.")
        self._over = True

    def _values(self, one: Started) -> str:
        told = [f"{name} {sum(v) / len(v):.6g}" for name, v in one.values.items()]
        wanted = {one.split()[-1] for one in self._asked or USUAL}
        return ", ".join(text for text in told if text.split()[-2] in wanted)

    def _limit(self) -> str:
        limit = self._purse.limit
        return f", {limit:g} device minutes" if limit is not None else ""

    def conclude(self) -> Finding:
        """Write ``compare.json``, print the table."""
        pair = self.pair
        judged, finding = pair.judged(self._seen), pair.finding(self._seen)
        content = {
            "schema": 1,
            "finding": finding.name.lower(),
            "margin": self._margin,
            "device_minutes": round(self._purse.total, 2),
            "variants": [asdict(variant) for variant in self._variants],
            "metrics": [to_dict(one) for one in judged],
            "starts": [asdict(one) for one in self._seen],
        }
        write_json(self._home / "compare.json", here().value(content))
        closing.attempt("the page", lambda: pages.compared(self._home, content), self._say)
        for one in judged:
            self._say(line(one))
        a, b = (foreign.line(one.name) for one in self._variants)
        when = "within the budget" if self._over else "so soon"
        words = {
            Finding.NO_WORSE: f"{b} is no worse than {a}",
            Finding.WORSE: f"{b} is worse than {a}",
            Finding.UNKNOWN: f"cannot tell {when} whether {b} is worse than {a}",
        }
        spent = f"({len(self._seen)} starts, {self._purse.total:.1f} device minutes)"
        self._say(f"{words[finding]} {spent}")
        if any(trial.rehearsed(self._home / one.run) for one in self._seen):
            self._say("rehearsed: stand-ins played the engines, which says nothing of a product")
        return finding

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
