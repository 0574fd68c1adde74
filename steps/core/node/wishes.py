"""What is asked for on a command line: a case or a plan, how to rehearse it, which node.

Enters: arguments. Leaves: :class:`Wishes`, made once at the door of a command, and the plan
they mean; or what is wrong with them. Touches: reads the case or the plan.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from steps.core import settings
from steps.core.case.case import Case
from steps.core.errors import InfraError, UsageError
from steps.core.node.products import pin
from steps.core.plan import clusters, faults, products
from steps.core.plan.budgets import parse_timeouts
from steps.core.plan.cluster import Cluster, Rehearsal
from steps.core.plan.drivers import DRIVERS
from steps.core.plan.plan import Plan, from_json
from steps.core.plan.products import Product
from steps.core.plan.resolver import Options, resolve
from steps.core.record.rundir import new_run_id

CONFIGS = clusters.ROOT / "configs"


def find_case(name: str) -> Path:
    """A case by path, or by its name in ``configs/``; ``CONFIG_BASE_PATH`` is honoured.

    Raises:
        UsageError: there is none; lists close names.
    """
    import difflib

    base = settings.read().config_base_path
    there = []
    for path in (Path(name), *([Path(base) / name] if base else []), CONFIGS / name):
        with contextlib.suppress(OSError):  # a name may be too long for a file
            if path.is_file():
                return path
            if path.exists():
                there.append(path)
    if there:
        kind = "a directory" if there[0].is_dir() else "no regular file"
        raise UsageError(f"{there[0]} is {kind}, expected a case file", "Name a YAML file.")
    known = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    known = [path for path in known if not path.startswith("clusters/")]
    close = difflib.get_close_matches(name, known, 3, 0.4)
    here = f"configs/ has: {', '.join(known)}." if known else "Name the path of a YAML file."
    raise UsageError(
        f"no case {name!r}, neither as a path nor in configs/",
        f"Did you mean {' or '.join(close)}?" if close else here,
    )


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """``--plan``/``--case``, ``--node-index``, ``--run-dir`` and what shapes a plan."""
    where = parser.add_argument_group("what to run")
    where.add_argument("--plan", help="a plan.json; default: runs/latest/plan.json")
    where.add_argument("--case", help="a case: a path, or a name in configs/")
    where.add_argument("--node-index", type=int, help="which node this is; default 0 (the leader)")
    where.add_argument("--run-dir", help="default: the plan's directory, or runs/<run id>")
    where.add_argument("--verbose", action="store_true", help="show what the processes print")
    add_shape_arguments(parser)


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """What shapes a plan made from a case."""
    shape = parser.add_argument_group("with --case")
    shape.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    shape.add_argument(
        "--rehearse", action="store_true", help="stand-ins play the engines, on this machine"
    )
    shape.add_argument("--fault", action="append", default=[], help="inject a fault in a rehearsal")
    shape.add_argument("--load-seconds", type=seconds, default=1.0, help="of a stand-in; default 1")
    shape.add_argument("--bench", choices=tuple(DRIVERS), help="benchmark driver")
    shape.add_argument(
        "--timeout", action="append", default=[], metavar="PHASE=SECONDS", help="a phase's budget"
    )
    shape.add_argument(
        "--profile", default="", metavar="NAME", help="cluster profile in configs/clusters/; only "
        "its products count where nodes are no pods",
    )  # fmt: skip
    shape.add_argument(
        "--product", action="append", default=[], metavar="NAME=REF",
        help="test this state of a product: a branch, tag, commit, pr/N, URL@REF, pip:VERSION, "
        "wheel:PATH, dir:PATH",
    )  # fmt: skip
    shape.add_argument("--image", type=_image, help="with --on k8s: instead of the profile's")
    shape.add_argument(
        "--network", type=_network, default="", help="loopback network, such as 71.9"
    )


def _image(text: str) -> str:
    """A reference of an image; an empty variable of a shell would mean the profile's."""
    if not re.fullmatch(r"\S+", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected REPOSITORY:TAG or @DIGEST")
    return text


def _network(text: str) -> str:
    """Two numbers of a loopback network."""
    parts = text.split(".")
    if text and not (len(parts) == 2 and all(re.fullmatch("[0-9]{1,3}", p) for p in parts)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected two numbers such as 71.9")
    if any(int(part) > 255 for part in parts if part):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers from 0 to 255")
    return text


def seconds(text: str, least: float = 0, most: float = 86400) -> float:
    """A number of seconds."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not least <= found <= most:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected seconds from {least:g} to {most:g}"
        )
    return found


@dataclass(frozen=True)
class Wishes:
    """What somebody asked for on a command line, parsed and checked once.

    Attributes:
        place: the backend that ``--on`` names; empty: whatever fits.
        stand_ins: how stand-ins behave, if they play.
        rehearsal: the same when they do play, else None.
        signals: the injected faults that the runner delivers itself.
        case_name: what messages call the case; empty: its path.
        only: the case that is meant, where its file holds several.
        driver: ``smoke``, ``aisbench`` or ``none``; empty: the usual one.
        timeouts: seconds by phase.
        run: the run's id; empty: one made of the time.
        bound: the node program ends when its standard input closes.
        output: ``text`` for people, ``events`` for a starter.
        detach: a keeper holds what a step starts; ``limit``: for so many seconds at most.
        product: products as they were asked for; ``products``: what these words mean.
        image: of containers, instead of the profile's.
    """

    case: str = ""
    case_name: str = ""
    only: str = ""
    plan: str = ""
    place: str = ""
    profile: str = ""
    hosts: str = ""
    node_index: int | None = None
    run_dir: Path | None = None
    run: str = ""
    junit: Path | None = None
    verbose: bool = False
    keep: bool = False
    stand_ins: Rehearsal = field(default_factory=Rehearsal)
    rehearsal: Rehearsal | None = None
    signals: tuple[faults.Signal, ...] = ()
    driver: str = ""
    timeouts: Mapping[str, float] = field(default_factory=dict)
    network: str = ""
    token_file: str = ""
    cluster: str = ""
    bound: bool = False
    output: str = "text"
    detach: bool = False
    limit: float = 0.0
    product: tuple[str, ...] = ()
    products: tuple[Product, ...] = ()
    image: str = ""

    def options(self, run: str) -> Options:
        """What these wishes add to case and cluster."""
        return Options(run, self.driver, self.timeouts)

    def node_words(self) -> tuple[str, ...]:
        """The same for a node program that makes the plan itself, as its command line."""
        words = ["--only", self.only] if self.only else []
        words += ["--bench", self.driver] if self.driver else []
        for phase, seconds in self.timeouts.items():
            words += ["--timeout", f"{phase}={seconds:.15g}"]
        return tuple(words)

    def rehearsed(self) -> Wishes:
        """The same wishes, carried out by stand-ins."""
        return replace(self, rehearsal=self.stand_ins)

    def of_case(self, case: Case) -> Wishes:
        """The same for a case, which may itself say that stand-ins play; that is said, wherever.

        Raises:
            UsageError: there are faults, and nobody rehearses.
        """
        made = self
        if case.rehearse and self.rehearsal is None:
            made = self.rehearsed()
            text = f"{case.file} says 'rehearse: true': stand-ins play the engines"
            print(text, file=sys.stderr, flush=True)
        made.check_faults()
        return made.with_products()

    def with_products(self) -> Wishes:
        """The same with the products of command line and profile, looked up once.

        Raises:
            UsageError, CaseError: there is no such product or state, or the profile is wrong.
            InfraError: a server does not answer.
        """
        if self.products or not (self.product or self.profile):
            return self
        known, listed = products.of_profile({}), tuple[str, ...]()
        if self.profile:
            from steps.core.plan.profile import find_profile, load_profile  # here: as any YAML

            known, listed = load_profile(find_profile(self.profile)).known_products()
        found = products.wanted(self.product, known, listed=listed)
        return replace(self, products=tuple(map(pin.pin, found)))

    def placed(self, cluster: Cluster) -> Cluster:
        """The cluster with what is tested on it."""
        return replace(cluster, products=self.products, image=self.image or cluster.image)

    def check_faults(self) -> None:
        """Refuse faults where nothing is rehearsed.

        Raises:
            UsageError: there are some.
        """
        if self.stand_ins.faults and self.rehearsal is None:
            raise UsageError("--fault works in a rehearsal only", "Add --rehearse.")


#: Options whose field has another name, or needs more than to be copied.
_FIELDS = {"on": "place", "run_id": "run", "bench": "driver"}


def wishes_of(arguments: argparse.Namespace, *, case_may_rehearse: bool = False) -> Wishes:
    """The wishes of a command line; an option that it does not have keeps its default.

    Args:
        case_may_rehearse: the case may still ask for stand-ins; the caller checks the faults then.

    Raises:
        UsageError: a fault or a budget is wrong.
    """
    given = {_FIELDS.get(name, name): value for name, value in vars(arguments).items() if value}
    asked = {name: value for name, value in given.items() if name in Wishes.__dataclass_fields__}
    # An index of 0 is a wish too.
    asked["node_index"] = getattr(arguments, "node_index", None)
    if "run_dir" in asked:
        asked["run_dir"] = Path(asked["run_dir"])
    asked["product"] = tuple(given.get("product", ()))
    texts = tuple(given.get("fault", ()))
    try:
        _, asked["signals"] = faults.sort(texts)
    except ValueError as error:
        raise UsageError(str(error), "docs/rehearsal.md has the language of faults.") from None
    try:
        asked["timeouts"] = parse_timeouts(given.get("timeout", ()))
    except ValueError as error:
        raise UsageError(str(error)) from None
    stand_ins = Rehearsal(getattr(arguments, "load_seconds", 1.0), texts)
    made = Wishes(**asked, stand_ins=stand_ins)
    made = made.rehearsed() if given.get("rehearse") else made
    if not case_may_rehearse:
        made.check_faults()
    return made


def plan_of(asked: Wishes) -> tuple[Plan, Path]:
    """The plan somebody asked for, and its run directory.

    Raises:
        UsageError, CaseError, InfraError: there is none.
    """
    if asked.case:
        from steps.core.case.build import load_case  # here: a node that has a plan reads no case

        case = load_case(find_case(asked.case), only=asked.only)
        run = new_run_id()
        asked = asked.with_products()
        cluster = clusters.local(case, rehearsal=asked.rehearsal, network=asked.network)
        plan = resolve(case, asked.placed(cluster), asked.options(run))
        return plan, asked.run_dir or Path("runs") / run
    path = Path(asked.plan or (asked.run_dir or Path("runs/latest")) / "plan.json")
    if not path.is_file():
        raise UsageError(
            f"no plan: {path} is not there",
            "Give --case CASE [--rehearse], --plan FILE, or --run-dir of an earlier run.",
        )
    try:
        plan = from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "Name a plan that you may read with --plan, a directory of yours with --run-dir."
        raise InfraError(f"{path}: {error.strerror}", hint) from None
    except ValueError as error:
        hint = "Make one anew: invoke plan --case CASE."
        raise UsageError(f"{path}: {error}", hint) from None
    return plan, asked.run_dir or path.parent


def index_in(plan: Plan, given: int | None) -> int:
    """The node index of a command line, the leader's by default.

    Raises:
        UsageError: the plan has no such node.
    """
    index = given or 0
    if not 0 <= index < len(plan.nodes):
        raise UsageError(
            f"--node-index: found {index}, expected 0 to {len(plan.nodes) - 1}",
            "Nodes count from 0; node 0 is the leader.",
        )
    return index
