"""The fault table: what befalls whom when, and what the verdict must say.

Enters: nothing. Leaves: ``ROWS``. The tests hold the harness to it, the
benchmark ``benchmarks/fault_times.py`` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

ONE_P_ONE_D = "quickstart.yaml"
DP = "Qwen3-235B-A22B.yaml"
TWO_P_TWO_D = "DeepSeek-V3.2-W8A8-2P2D.yaml"
POOL = "GLM-5-W8A8-external-dp.yaml"


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        node, process: the first cause; None where any will do.
        verdict: several with ``|`` where a proxy decides by its patience who is first to tell.
        silent: nodes whose program is killed, so that no record can come from them.
        dies: the fault is a death, whose detection time is measured.
    """

    case: str
    fault: str
    verdict: str
    exit_code: int
    node: int | None
    process: str = "server"
    signal: str = ""
    code: int | None = None
    extra: tuple[str, ...] = ()
    silent: tuple[int, ...] = ()
    dies: bool = False

    @property
    def name(self) -> str:
        """The row's id in test reports."""
        return f"{self.case.removesuffix('.yaml')}-{self.fault}"


def _death(case: str, fault: str, verdict: str, node: int, **more: object) -> Row:
    return Row(case, fault, verdict, 1, node, dies=True, **more)  # type: ignore[arg-type]


_SOON = ("--timeout", "load=6")

ROWS = (
    # One prefiller, one decoder.
    _death(ONE_P_ONE_D, "crash@0:start", "startup", 0, code=1),
    _death(ONE_P_ONE_D, "crash=3@1:load", "startup", 1, code=3),
    _death(ONE_P_ONE_D, "exit0@0:load", "startup", 0, code=0),
    _death(ONE_P_ONE_D, "kill9@1:load", "startup", 1, signal="SIGKILL"),
    _death(ONE_P_ONE_D, "exit0@1:ready", "startup", 1, code=0),
    _death(ONE_P_ONE_D, "fork-away@1:ready", "startup", 1, code=0),
    _death(ONE_P_ONE_D, "crash@0:bench", "crash", 0, code=1),
    _death(ONE_P_ONE_D, "exit0@0:bench", "crash", 0, code=0),
    _death(ONE_P_ONE_D, "kill9@1:bench", "crash", 1, signal="SIGKILL"),
    _death(ONE_P_ONE_D, "oom@1:bench", "crash", 1, signal="SIGKILL"),
    _death(ONE_P_ONE_D, "kill9@0.proxy:load", "startup", 0, process="proxy", signal="SIGKILL"),
    _death(ONE_P_ONE_D, "kill9@0.proxy:bench", "crash", 0, process="proxy", signal="SIGKILL"),
    Row(ONE_P_ONE_D, "kill9@1.node:load", "infra", 3, 1, "node", silent=(1,), dies=True),
    Row(ONE_P_ONE_D, "kill9@1.node:bench", "infra", 3, 1, "node", silent=(1,), dies=True),
    Row(ONE_P_ONE_D, "kill9@0.node:bench", "infra", 3, 0, "node", silent=(0,), dies=True),
    Row(ONE_P_ONE_D, "stop@1.node:bench", "infra", 3, 1, "node"),
    Row(ONE_P_ONE_D, "stop@0.node:bench", "infra", 3, 0, "node", silent=(0,)),
    Row(ONE_P_ONE_D, "hang@1:load", "hang", 4, 1, extra=_SOON),
    Row(ONE_P_ONE_D, "http503@0:load", "hang", 4, 0, extra=_SOON),
    Row(ONE_P_ONE_D, "silent@1:bench", "hang", 4, None, ""),
    Row(ONE_P_ONE_D, "stop@1:bench", "hang", 4, 1),
    Row(ONE_P_ONE_D, "http503@1:bench", "functional|crash", 1, None, ""),
    Row(ONE_P_ONE_D, "stop@0.proxy:bench", "hang", 4, 0, "proxy"),
    Row(ONE_P_ONE_D, "garbage@0:bench", "functional", 1, 0, ""),
    Row(ONE_P_ONE_D, "empty@1:bench", "functional", 1, 0, ""),
    Row(ONE_P_ONE_D, "midstream@1:bench", "functional", 1, 0, ""),
    Row(ONE_P_ONE_D, "truncate@1:bench", "functional", 1, 0, ""),
    Row(ONE_P_ONE_D, "refuse-handoff@1", "functional", 1, 0, "proxy"),
    Row(ONE_P_ONE_D, "busy@1.npu-smi", "infra", 3, 1, ""),
    Row(ONE_P_ONE_D, "slow=3@*", "pass", 0, None, ""),
    # Data parallel over two nodes, the second headless.
    _death(DP, "crash@1:load", "startup", 1, code=1),
    _death(DP, "kill9@0:load", "startup", 0, signal="SIGKILL"),
    _death(DP, "exit0@1:ready", "startup", 1, code=0),
    # Its front end is slow, so that four seconds are well within the benchmark.
    _death(DP, "kill9@1:+4", "crash", 1, signal="SIGKILL", extra=("--fault", "slow=4@0")),
    _death(DP, "kill9@0:bench", "crash", 0, signal="SIGKILL"),
    Row(DP, "hang@1:bench", "hang", 4, None, ""),
    Row(DP, "kill9@1.node:bench", "infra", 3, 1, "node", silent=(1,), dies=True),
    # Two prefill nodes and two decode nodes, a headless rank in each group.
    _death(TWO_P_TWO_D, "crash@3:load", "startup", 3, code=1),
    _death(TWO_P_TWO_D, "kill9@1:load", "startup", 1, signal="SIGKILL"),
    _death(TWO_P_TWO_D, "kill9@2:bench", "crash", 2, signal="SIGKILL"),
    _death(TWO_P_TWO_D, "crash@0:bench", "crash", 0, code=1),
    Row(TWO_P_TWO_D, "kill9@3.node:bench", "infra", 3, 3, "node", silent=(3,), dies=True),
    # A KV pool.
    _death(POOL, "crash@0.pool:start", "startup", 0, process="pool", code=1),
    _death(POOL, "kill9@0.pool:+0.8", "startup", 0, process="pool", signal="SIGKILL"),
)
