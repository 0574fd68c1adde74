"""Environment: what nobody reads, what the harness overwrites, what is misspelled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache, reduce
from operator import getitem

from steps.core.errors import Place, Severity
from steps.core.plan.variables import names_in
from steps.core.vllm import options
from steps.lint.fleet import Fleet, Server
from steps.lint.registry import Finding, rule
from steps.lint.spelling import one_away

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
INJECTED = (
    "HCCL_IF_IP",
    "LOCAL_IP",
    "MASTER_IP",
    "HCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "TP_SOCKET_IFNAME",
    "NIC_NAME",
)
#: Beginnings of names that some program reads though no table here has all of them.
_READ = (
    "ACL", "ASCEND", "ATB", "CANN", "CPU_", "CUDA", "DISABLE_", "DYNAMIC", "ENABLE_", "EXPERT",
    "FLA_", "GE_", "GLOO", "HCCL", "HCCN", "HF_", "HIXL", "HTTP", "INF_NAN", "KMP", "LCCL", "LD_",
    "LMCACHE", "LLM_", "LWS_", "MAX_", "MC_", "MF_", "MIES", "MINDIE", "MKL", "MMC", "MODELSCOPE",
    "MOONCAKE", "MS", "MULTI_STREAM", "NCCL", "NO_PROXY", "NPU", "NUMBA", "NUMEXPR", "OMP",
    "OPENBLAS", "PATH", "PIP", "PYTHON", "PYTORCH", "RANK_", "RAY", "SAFETENSORS", "SHM",
    "SOC_VERSION", "TASK_QUEUE", "TF_", "TIKTOKEN", "TMPDIR", "TNG", "TOKENIZERS", "TORCH",
    "TP_SOCKET", "TRANSFORMERS", "TRITON", "TZ", "UCM", "UCX", "USE_", "VLLM", "WORKSPACE",
    "YR_", "http", "https", "no_proxy",
)  # fmt: skip
_HARNESS = (
    "SERVER_PORT",
    "DISAGGREGATED_PREFILL_PROXY_SCRIPT",
    "BENCHMARK_HOME",
    "CONFIG_BASE_PATH",
    "CONFIG_YAML_PATH",
    "LANG",
    "LC_ALL",
    "HOME",
)
_ENVIRONMENTS = (("env_common",), ("envs",), ("env_extend",))
_WRITTEN = re.compile(r"[^\s,\]}]+")
_CHECKED = ("VLLM_", "HCCL_", "ASCEND_", "OMP_", "PYTORCH_NPU_", "TASK_QUEUE_", "DYNAMIC_")


def _used(fleet: Fleet, server: Server) -> set[str]:
    found: set[str] = set()
    for text in (
        *(word.text for word in server.node.command),
        *server.node.envs.values(),
        fleet.case.proxy.command,
        fleet.case.proxy.script,
        *fleet.case.proxy.args,
    ):
        if "$" in text:
            found.update(names_in(text))
    return found


@rule("MN601", INFO, "Variable that nobody uses")
def used(fleet: Fleet) -> Iterator[Finding]:
    """No command, and no other variable of the node uses it, and no program is known to read a
    name like this."""
    needed: set[str] = set()
    for server in fleet.commands:
        needed |= _used(fleet, server)
    for server in fleet.commands:
        for name in server.node.envs:
            if name in needed or name in _HARNESS or name in INJECTED or name.startswith(_READ):
                continue
            yield Finding(
                f"{name} is defined and nobody uses it",
                fleet.env_place(server.node, name),
                "Remove it, or use it as $" + name + ".",
            )


@rule("MN602", WARNING, "Variable that the harness overwrites")
def overwritten(fleet: Fleet) -> Iterator[Finding]:
    """The harness sets the addresses and interfaces of each node itself; what the case says for
    these names never reaches a process."""
    for server in fleet.commands:
        for name in INJECTED:
            text = server.node.envs.get(name)
            if text is None or text in (f"${name}", f"${{{name}}}", server.process.env.get(name)):
                continue
            if any(word in text for word in ("$LOCAL_IP", "${LOCAL_IP}", "$NIC_NAME")):
                continue
            yield Finding(
                f"{name} is set by the harness on every node; '{text}' is lost",
                fleet.env_place(server.node, name),
                "Remove it.",
            )


@cache
def _names() -> frozenset[str]:
    return frozenset(options.tables()["environment"])


@cache
def _ordered() -> tuple[str, ...]:
    return tuple(sorted(_names()))


@lru_cache(maxsize=4096)
def near(name: str) -> str:
    """The known variable that is one letter away from ``name``; empty when none is."""
    if name in _names():
        return ""
    for known in _ordered():
        if abs(len(known) - len(name)) <= 1 and known[:2] == name[:2] and one_away(name, known):
            return known
    return ""


@rule("MN603", WARNING, "Variable one letter away from a known one")
def misspelled(fleet: Fleet) -> Iterator[Finding]:
    """A name of `VLLM_`, `HCCL_`, `ASCEND_`, `OMP_` that differs from a known one in one letter is
    read by nobody."""
    for server in fleet.commands:
        for name in server.node.envs:
            close = near(name)
            if close.startswith(_CHECKED):
                yield Finding(
                    f"{name}: nobody reads it; {close} is one letter away",
                    fleet.env_place(server.node, name),
                    f"Did you mean {close}?",
                )


@rule("MN604", WARNING, "Variable that cannot be read")
def readable(fleet: Fleet) -> Iterator[Finding]:
    """What stands in `${...}` is no name, so it is passed on as it is. No shell runs the command:
    there is no `${NAME:-default}`."""
    for server in fleet.commands:
        for at, word in enumerate(server.command.argv):
            if "${" in word and not names_in(word):
                yield Finding(
                    f"'{word[:60]}' is passed on as it is", server.command.place(at), "Write $NAME."
                )
        for name, text in server.node.envs.items():
            if "${" in text and not names_in(text):
                yield Finding(
                    f"{name}: '{text[:60]}' is passed on as it is",
                    fleet.env_place(server.node, name),
                    "Write $NAME.",
                )


@rule("MN606", WARNING, "Value that YAML reads as something else")
def surprising(fleet: Fleet) -> Iterator[Finding]:
    """A value without quotes that YAML 1.1 takes for a number, a time, a truth or nothing reaches
    the process as Python writes it: `0123` as 83, `12:30` as 750, `1_000` as 1000, `3.10` as 3.1,
    `yes` as True, `~` as None. `true` as True is what upstream's cases mean."""
    source = fleet.case.source
    for path, (line, column, _, style) in source.spans.items():
        if style or path[-2:-1] not in _ENVIRONMENTS:
            continue
        value = reduce(getitem, path, source.data)
        if isinstance(value, str):
            continue
        found = _WRITTEN.match("".join(source.lines[line - 1 : line]), column - 1)
        written = found[0] if found else ""
        if value is None and written.lower() not in ("~", "null"):
            written = "nothing"
        if written.lower() != str(value).lower():
            yield Finding(
                f"{path[-1]}: {written} becomes {str(value)!r}",
                Place(fleet.case.file, line, column),
                "Put quotes around it, or write what it becomes.",
            )


@rule("MN605", WARNING, "SERVER_PORT is not the server's port")
def server_port(fleet: Fleet) -> Iterator[Finding]:
    """Upstream sends benchmarks (or the proxy) to `SERVER_PORT`, 8080 unless set; this harness
    reads the command. They should be one."""
    if fleet.routing:
        return
    for server in fleet.commands:
        if server.headless:
            continue
        said = server.node.envs.get("SERVER_PORT")
        port = server.command.text("--port", "8000")
        if said and said.isdigit() and port.isdigit() and said != port:
            yield Finding(
                f"node {server.index} listens on port {port}, SERVER_PORT is {said}",
                server.command.place_of("--port"),
                "Write --port $SERVER_PORT.",
                (fleet.env_place(server.node, "SERVER_PORT"),),
            )
