"""The manifests of a case, for ``kubectl apply``; nothing is applied.

Enters: a case and a profile. Leaves: YAML on standard output, or an
:class:`~k8s.manifest.Order` for the backend. Touches: reads files.

    python -m k8s.render CASE.yaml --profile a3 > lws.yaml
    kubectl apply --server-side -f lws.yaml
    invoke follow --on k8s --name NAME
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from k8s import bundle, manifest
from k8s.api import access
from k8s.manifest import Names, Order
from steps.core import door, foreign, settings
from steps.core.case.build import load_case
from steps.core.case.case import Case
from steps.core.errors import InfraError, UsageError
from steps.core.node import wishes
from steps.core.node.products.carry import carry
from steps.core.node.wishes import Wishes
from steps.core.plan.budgets import BUDGETS
from steps.core.plan.cluster import Cluster, loopback_nodes
from steps.core.plan.plan import Plan
from steps.core.plan.profile import Profile, find_profile, load_profile
from steps.core.plan.resolver import resolve
from steps.core.record.rundir import new_run_id, write_text
from steps.core.vllm.commandline import read


def _devices(case: Case, plan: Plan, profile: Profile) -> int:
    """Devices a pod asks for: those its commands need, or more where the case writes so.

    Upstream's pods get all devices of a node, whatever ``npu_per_node`` says.
    """
    nodes = [
        [read(each.argv) for each in node.processes if each.kind == "server"] for node in plan.nodes
    ]
    spans = any(node.ranks is not None and node.ranks.node_group >= 0 for node in case.nodes)
    unknown = spans or any(command.ray for commands in nodes for command in commands)
    counted = max(sum(command.devices for command in commands) for commands in nodes)
    needs = case.npu_per_node if unknown else counted
    have = profile.devices_per_node
    if have is not None and needs > have:
        raise UsageError(
            f"{case.file}: the commands of a node need {needs} devices, one of the profile "
            f"{profile.name!r} has {have}",
            f"Use another profile, or correct device.per_node in {profile.file}.",
        )
    asked = max(case.npu_per_node, needs)
    return asked if have is None else min(asked, have)


def order(
    case: Case,
    profile: Profile,
    asked: Wishes,
    run: str,
    namespace: str,
    *,
    output: str,
    packed: bundle.Bundle | None = None,
) -> Order:
    """What a command line means on Kubernetes.

    Args:
        packed: the harness, where it is packed already.

    Raises:
        CaseError, UsageError: the case cannot be resolved, or asks for more than a node has.
        InfraError: the manifests would never run; that is a defect of ours.
    """
    options = asked.options(run)
    if asked.image:
        profile = replace(profile, image=asked.image)
    rehearsed = asked.rehearsal is not None
    products, files = carry(asked.products, bundle.PRODUCT_BYTES, rehearsed=rehearsed)
    known = dict.fromkeys(manifest.PASSED, "/")
    stand_in = Cluster("render", "k8s", loopback_nodes(case.num_nodes, "71.9"), known=known)
    plan = resolve(case, stand_in, options)
    made = Order(
        case=case,
        profile=profile,
        names=Names.of(case, run, namespace),
        run=run,
        token=secrets.token_hex(16),
        bundle=packed if packed and not files else bundle.make(rehearsed, more=files),
        expires=time.time() + profile.keep_for,
        output=output,
        arguments=_node_arguments(asked, case, profile),
        rehearsal=asked.rehearsal,
        port=urlsplit(plan.endpoint.url).port or 8080,
        devices=_devices(case, plan, profile),
        env=_own_environment(),
        products=products,
    )
    wrong = manifest.problems(manifest.documents(made))
    if wrong:
        raise InfraError("the manifests would never run: " + "; ".join(wrong), "Please report it.")
    return made


def _node_arguments(asked: Wishes, case: Case, profile: Profile) -> tuple[str, ...]:
    """Options that shape the plan, for the node program."""
    if "join" in {**case.timeouts, **asked.timeouts}:
        return asked.node_words()
    # One pod may run at once while another waits for a node and then for its image.
    wait = sum(profile.budgets.values()) + BUDGETS["join"].seconds
    return (*asked.node_words(), "--timeout", f"join={wait:g}")


def _own_environment() -> dict[str, str]:
    """What the pods get of the runner's environment."""
    tag = settings.read().fail_tag
    return {"FAIL_TAG": tag} if tag else {}


def text(made: Order) -> str:
    """The documents as YAML, with what to do with them."""
    name, namespace = made.names.base, made.names.namespace
    head = f"""\
# {made.case.name} on {made.case.num_nodes} nodes, run {made.run}, profile {made.profile.name}
#
#   kubectl apply --server-side -f THIS_FILE
#   invoke follow --on k8s --namespace {namespace} --name {name}     its log, to the verdict
#   invoke fetch --on k8s --namespace {namespace} --name {name}
#   kubectl delete -f THIS_FILE --cascade=foreground
"""
    return f"{head}---\n{written(manifest.documents(made))}"


def written(documents: Sequence[Any]) -> str:
    """Documents as YAML, of which a job log obeys no line."""
    body = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, default_flow_style=False)
    return body.replace("##[", "#\\x23[")  # it stands between double quotes only


_NUMBERS = frozenset("0123456789.+-")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, which people can read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    if foreign.printed(value) != value:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"')
    style = "|" if "\n" in value else None
    if style is None and value[:1] in _NUMBERS:
        # PyYAML and kubectl do not agree on what is a number: 1e5 is one, but for PyYAML.
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument("--namespace", default="", help="default: the profile's, the kubeconfig's")
    parser.add_argument("--output", default="", help="write here; default: standard output")
    wishes.add_shape_arguments(parser)


def work(arguments: argparse.Namespace) -> int:
    """Print the manifests, or write them to a file."""
    asked = wishes.wishes_of(arguments, case_may_rehearse=True)
    case = load_case(wishes.find_case(asked.case), only=asked.only)
    asked = asked.of_case(case)
    profile = load_profile(find_profile(asked.profile))
    namespace = arguments.namespace or profile.namespace or access.namespace()
    made = order(case, profile, asked, new_run_id(), namespace, output="text")
    if arguments.output:
        write_text(Path(arguments.output), text(made))  # it holds the run's token
    else:
        print(text(made), end="")
    return 0


main = door.Verb("render", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
