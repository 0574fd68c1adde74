"""Whether a failed installation is the product's fault, or that of what is around it.

Enters: at which stage a command failed, and what it printed. Leaves: the rule that decides.
Touches nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

#: Characters of a command's output that are looked at, the last ones.
LOOKED_AT = 64_000


@dataclass(frozen=True)
class Rule:
    """One rule; the first that fits decides.

    Attributes:
        verdict: class of verdict: ``infra``, ``config``, or ``startup``, which is the product's.
        says: what is wrong, behind the product's name.
        shows: all of them are in the output; none: the rule fits whatever is printed.
        stages: where it may fit: ``git``, ``build``, ``pip``, ``import``.
    """

    name: str
    verdict: str
    says: str
    hint: str
    shows: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("git", "build", "pip", "import")


_NETWORK = "Look at the node's network, proxies and DNS; install.log has the whole output."
RULES = (
    Rule(
        "disk", "infra", "the disk is full", "Make room there, or move MULTINODE_CACHE.",
        (r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b|Read-only file sys",),
    ),
    Rule(
        "memory", "infra", "the machine has no memory left", "Build with fewer jobs: env: in "
        "products: of a profile, such as MAX_JOBS: 4.",
        (r"MemoryError|Cannot allocate memory|Killed signal terminated program|: Killed\b",),
    ),
    Rule(
        "rights", "infra", "the machine does not let us", "Install as a user who may, or use an "
        "environment of your own.",
        (r"externally-managed-environment|Permission denied|Errno 13\b|No module named pip\b",),
        ("git", "build", "pip"),
    ),
    Rule(
        "reference", "config", "its repository has no such commit", "Write a commit that is on the "
        "server, with all its 40 digits.",
        (r"not our ref|couldn't find remote ref|did not contain",), ("git",),
    ),
    Rule(
        "git", "infra", "git does not reach its repository", "Look from the node with git "
        "ls-remote; where nodes reach no server, name a directory here: NAME=DIRECTORY@REF.",
        stages=("git",),
    ),
    Rule(
        "network", "infra", "the network or the package index fails", _NETWORK,
        (r"Retrying \(Retry\(|Could not fetch URL", r"No matching distribution|versions: none"),
    ),
    Rule(
        "network", "infra", "the network fails", _NETWORK,
        (r"Could not resolve host|[Nn]ame or service not known|Temporary failure in name reso"
         r"|Max retries exceeded|Read timed out|Connection (refused|reset|timed out)"
         r"|Network is unreachable|unable to access '|Failed to connect to|ProxyError|SSLError"
         r"|error: RPC failed|early EOF|HTTP error \d{3}|Tunnel connection failed",),
        ("build", "pip"),
    ),
    Rule(
        "index", "infra", "the package index does not have what it needs", "Check the versions it "
        "asks for, and the index that pip is told of on the node.",
        (r"No matching distribution found for",), ("build", "pip"),
    ),
    Rule("index", "infra", "pip fails", _NETWORK, stages=("pip",)),
    Rule(
        "libraries", "infra", "the machine lacks libraries that it needs", "Look at the driver, "
        "CANN and the environment scripts of the node.",
        (r"lib(ascend|hccl|acl|runtime|torch_npu|cuda)\w*\.so[.\d]*: cannot open shared object",),
        ("import",),
    ),
    Rule(
        "import", "startup", "does not import", "It is the product's fault; install.log has the "
        "traceback.", stages=("import",),
    ),
    Rule(
        "build", "startup", "does not build", "It is the product's fault; install.log has the "
        "compiler's words.", stages=("build",),
    ),
)  # fmt: skip
TIME = Rule("time", "infra", "", "Give it more with timeout: under products: in a profile, if "
            "install.log shows that it went on.")  # fmt: skip
_RETRIED = re.compile(r"^.{0,20}Retrying \(Retry\(.*$", re.MULTILINE)


def decide(stage: str, output: str, distribution: str = "") -> Rule:
    """The rule that fits a failed command.

    Args:
        distribution: of the product; where the index lacks itself, its version is wrong.
    """
    output = output[-LOOKED_AT:]
    # A try that was repeated is no failure.
    calm = _RETRIED.sub("", output)
    for rule in RULES:
        text = output if len(rule.shows) > 1 else calm
        if stage in rule.stages and all(re.search(pattern, text) for pattern in rule.shows):
            own = f"No matching distribution found for {distribution}=="
            if rule.name == "index" and distribution and own in text:
                hint = f"pip index versions {distribution} lists what there is."
                return replace(
                    rule, name="version", verdict="config", says="has no such version", hint=hint
                )
            return rule
    raise AssertionError(f"no rule for {stage}")  # pragma: no cover
