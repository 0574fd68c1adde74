"""Case + Cluster -> Plan, a pure function.

Enters: a case, a cluster, options. Leaves: a plan with no variable left in
it, or a :class:`CaseError` with everything that stands in the way. Touches
nothing; the same inputs give the same plan but for the run id.

What is injected, which master an address means, how the proxy is started and
where benchmarks go follow the upstream harness (vllm-ascend, multi_node).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steps.core import VERSION
from steps.core.case.case import Benchmark, Case, CaseNode, KvPool, conditions
from steps.core.errors import CaseError, Problem, enough, errors_of, sort_problems
from steps.core.plan import budgets, direct, drivers, kvpool, proxies
from steps.core.plan.cluster import Cluster, url_host
from steps.core.plan.plan import (
    KV_TRANSFER,
    LEADER,
    BenchmarkPlan,
    Endpoint,
    NodePlan,
    Plan,
    Port,
    Probe,
    Process,
)
from steps.core.plan.scope import Scope, with_ports
from steps.core.plan.variables import TooLong
from steps.core.vllm import access, commandline, kvports


@dataclass(frozen=True)
class Options:
    """What the command line adds to case and cluster.

    Attributes:
        driver: a name in ``drivers.DRIVERS``; empty: the usual one.
        timeouts: seconds by phase, over the case's.
    """

    run: str = ""
    driver: str = ""
    timeouts: Mapping[str, float] = field(default_factory=dict)


def resolve(case: Case, cluster: Cluster, options: Options | None = None) -> Plan:
    """The plan of ``case`` on ``cluster``.

    Raises:
        CaseError: variables nobody defines, no API server where one is
            needed, or more nodes than the cluster has.
    """
    plan, problems = examine(case, cluster, options)
    if errors_of(problems):
        raise CaseError(enough(problems))
    return plan


def examine(
    case: Case, cluster: Cluster, options: Options | None = None
) -> tuple[Plan, list[Problem]]:
    """The plan as far as it can be made, and what stands in the way of a whole one.

    Only the linter looks at a plan that has problems.

    Raises:
        CaseError: the cluster has another number of nodes, or variables multiply.
    """
    resolver = _Resolver(case, cluster, options or Options())
    try:
        plan = resolver.plan()
    except TooLong as error:
        hint = "Variables of variables multiply; write out what is meant."
        raise CaseError([Problem("MN007", str(error), case.place(), hint)]) from None
    return plan, sort_problems(resolver.problems)


def side_of(case: Case, index: int) -> str:
    """``prefiller``, ``decoder`` or ``plain``.

    A node that no list names belongs to the group of the node before it.
    """
    if case.split is None:
        return "plain"
    before = [at for at in (*case.split.prefillers, *case.split.decoders) if at <= index]
    if not before or max(before) in case.split.prefillers:
        return "prefiller"
    return "decoder"


def master_index(case: Case, index: int) -> int:
    """Which node's address ``MASTER_IP`` is on node ``index``.

    Node 0's; under disaggregated prefill the first decoder's for every node
    that is no prefiller.
    """
    node = next((n for n in case.nodes[index : index + 1] if n.index == index), None)
    if node is not None and node.master_index is not None:
        return node.master_index
    if case.split is not None and case.split.decoders and side_of(case, index) != "prefiller":
        return case.split.decoders[0]
    return LEADER


class _Resolver:
    def __init__(self, case: Case, cluster: Cluster, options: Options) -> None:
        self.case = case
        self.cluster = cluster
        self.options = options
        self.scope = Scope(case, cluster)
        self.problems = self.scope.problems
        self.notes: list[str] = []
        self.ports: list[Port] = []
        self._groups: dict[Any, str] = {}
        self._named: Counter[str] = Counter()
        self._budgets = budgets.of(case, cluster, self.options.timeouts, self.options.driver)

    def plan(self) -> Plan:
        case, cluster = self.case, self.cluster
        if len(cluster.nodes) != case.num_nodes:
            raise CaseError(
                [
                    Problem(
                        "MN022",
                        f"the case wants {case.num_nodes} nodes, the cluster {cluster.name} "
                        f"has {len(cluster.nodes)}",
                        case.place("num_nodes"),
                        "Name as many hosts as num_nodes says.",
                    )
                ]
            )
        self._take(LEADER, cluster.control_port, "control", "node")
        if case.kv_pool is not None and case.dialect == "single":
            taken = {cluster.control_port, *case.kv_pool.ports.values()}
        else:
            taken = {cluster.control_port}
        case = self.case = self.scope.case = with_ports(case, taken)
        nodes = [self._node(node) for node in case.nodes]
        if nodes and not errors_of(self.problems):
            nodes[LEADER] = self._add_proxy(nodes)
        endpoint = self._endpoint(nodes)
        if cluster.rehearsal is not None:
            self.notes.append("rehearsal: stand-ins play the engines; baselines are not judged")
            if case.special_dependencies:
                self.notes.append("special_dependencies are not installed in a rehearsal: skipped")
            self.notes += cluster.skipped
        plan = Plan(
            run=self.options.run,
            case_name=case.name,
            case_file=case.file,
            case_sha256=case.sha256,
            engine=case.engine,
            model=self.scope.value(case.model, cluster.env, ("model",)),
            cluster=cluster,
            nodes=tuple(nodes),
            endpoint=endpoint,
            benchmarks=tuple(self._benchmark(entry) for entry in case.benchmarks),
            budgets=self._budgets,
            ports=tuple(sorted(self.ports, key=lambda p: (p.node, p.port, p.purpose))),
            notes=tuple(self.notes),
            proof=case.proof,
            content=case.content,
            harness=VERSION,
            only=case.only,
            dialect=case.dialect,
        )
        self._drafts(plan)
        return plan

    # Nodes

    def _node(self, node: CaseNode) -> NodePlan:
        at = self.cluster.nodes[node.index]
        side = side_of(self.case, node.index)
        master = self.cluster.nodes[master_index(self.case, node.index)].address
        processes: list[Process] = []
        told = kvpool.Told()
        pool = self.case.kv_pool
        if pool is not None:
            told = self._told_of_pool(pool, node.index)
            if node.index == LEADER:
                processes.append(self._pool(pool))
        if node.more:
            servers = [self._alone(node, side, master, at) for at in range(len(node.commands))]
        elif node.ranks is None:
            servers = [self._server(node, side, master)]
        else:
            servers = [
                self._server(node, side, master, local) for local in range(node.ranks.dp_size_local)
            ]
        processes += [
            replace(server, env={**server.env, **told.env}, files=told.paths) for server in servers
        ]
        return NodePlan(
            index=node.index,
            address=at.address,
            interface=at.interface,
            role="leader" if node.index == LEADER else "worker",
            side=side,
            headless=all(server.headless for server in servers),
            master=master,
            devices=self.case.npu_per_node,
            processes=tuple(processes),
            files=told.files,
            packages=tuple(_requirement(*item) for item in self.case.special_dependencies.items()),
        )

    def _server(self, node: CaseNode, side: str, master: str, local: int | None = None) -> Process:
        """The node's server, or that of a rank: the node's ``local``-th."""
        ranks = node.ranks
        if ranks is None or local is None:
            name, where, braced = "server", "server_cmd", None
        else:
            name, where = f"server-{local}", "server_cmd_template"
            braced = self.scope.of_rank(node, ranks, local, master)
        env, paths = self.scope.environment(node, master, name, braced)
        argv = self.scope.command(node, where, env, braced)
        said = commandline.read(argv)
        process = Process(name=name, kind="server", argv=argv, env=env, paths=paths)
        if ranks is None or local is None:
            rank = said.first_rank if said.dp_size > 1 else None
            count = max(said.local_ranks, 1)
            process = replace(process, headless=node.headless, rank=rank, ranks=count)
        else:
            rank = ranks.dp_rank_start + local
            process = replace(process, headless=said.has("--headless"), rank=rank)
        return self._finish(process, node.index, side, master)

    def _alone(self, node: CaseNode, side: str, master: str, at: int) -> Process:
        """One of several servers of a node, with the device of its own index."""
        name = f"server-{at}"
        env, paths = self.scope.environment(node, master, name)
        env["ASCEND_RT_VISIBLE_DEVICES"] = str(at)
        argv = self.scope.command(node, "epd_server_cmds", env, words=node.commands[at])
        process = Process(name=name, kind="server", argv=argv, env=env, paths=paths)
        return self._finish(process, node.index, side, master)

    def _finish(self, process: Process, index: int, side: str, master: str) -> Process:
        """Adds what the finished command says: API, probe, ports, group."""
        command = commandline.read(process.argv)
        address = self.cluster.nodes[index].address
        size = command.dp_size
        rpc = command.number("--data-parallel-rpc-port", commandline.DEFAULT_RPC_PORT)
        meets = command.text("--data-parallel-address") or address
        group = self._group(process, index, side, (meets, rpc), size)
        api, probe = "", None
        if not process.headless:
            port = command.number("--port", commandline.DEFAULT_PORT)
            host = command.text("--host") or "0.0.0.0"
            reached = address if host in ("0.0.0.0", "::", "[::]", "localhost") else host
            scheme = "https" if access.certificate(command) else "http"
            api = f"{scheme}://{url_host(reached)}:{port}"
            probe = Probe("http", f"{api}/health")
            self._take(index, port, "api", process.name)
        if size > 1 and meets == address and process.rank == 0:
            self._take(index, rpc, "data-parallel-rpc", process.name)
        self._kv_ports(process, index)
        return replace(process, api=api, probe=probe, group=group)

    def _group(
        self, process: Process, index: int, side: str, meets: tuple[str, int], size: int
    ) -> str:
        if process.rank is not None and process.ranks < size:
            key: Any = (side, meets)
        else:
            key = (side, index, process.name)
        if key not in self._groups:
            self._groups[key] = f"{side}-{self._named[side]}"
            self._named[side] += 1
        return self._groups[key]

    def _kv_ports(self, process: Process, index: int) -> None:
        for found in kvports.of(process.argv, process.rank or 0, process.ranks):
            first = min(found.first, 65535)
            count = min(found.count, 65536 - first)
            port = Port(index, first, KV_TRANSFER, process.name, count, found.listens)
            self.ports.append(port)

    # KV pool and proxy

    def _pool(self, pool: KvPool) -> Process:
        address = self.cluster.nodes[LEADER].address
        env = self.scope.around(LEADER, address, "pool")
        for key, port in pool.ports.items():
            self._take(LEADER, port, f"kv-pool {key}", "pool")
        return kvpool.process(pool, self.cluster, env)

    def _told_of_pool(self, pool: KvPool, index: int) -> kvpool.Told:
        leader = self.cluster.nodes[LEADER].address
        table = {
            **{f"NODE_{n.index}_IP": n.address for n in self.cluster.nodes},
            "LOCAL_IP": self.cluster.nodes[index].address,
            "MASTER_IP": leader,
        }

        def text(value: Any) -> Any:
            if isinstance(value, str):
                return self.scope.value(value, table, ("kv_pool", "config"))
            if isinstance(value, Mapping):
                return {key: text(inner) for key, inner in value.items()}
            return [text(inner) for inner in value] if isinstance(value, list) else value

        return kvpool.told(pool, text(pool.config), url_host(leader), index)

    def _add_proxy(self, nodes: list[NodePlan]) -> NodePlan:
        leader = nodes[LEADER]
        if self.case.proxy.kind == proxies.ENCODERS:
            return replace(leader, processes=(*leader.processes, self._encoders(leader)))
        if self.case.split is None:
            return leader
        backends = {
            side: [
                process
                for node in nodes
                if node.side == side
                for process in node.processes
                if process.kind == "server" and process.api
            ]
            for side in ("prefiller", "decoder")
        }
        for side, processes in backends.items():
            if not processes:
                where = "routing" if self.case.dialect == "routing" else "disaggregated_prefill"
                self._problem(
                    "MN021",
                    f"no {side} has an API server: all are headless or none is listed",
                    "The proxy needs at least one server of each role.",
                    where,
                )
        if errors_of(self.problems):
            return leader
        return replace(leader, processes=(*leader.processes, self._proxy(leader, backends)))

    def _proxy(self, leader: NodePlan, backends: Mapping[str, Sequence[Process]]) -> Process:
        spec = self.case.proxy
        routing = self.case.dialect == "routing"
        port = self._free(proxies.ROUTING_PORT if routing else proxies.DEPLOYMENT_PORT)
        self._take(LEADER, port, "proxy", "proxy")
        node = self.case.nodes[LEADER]
        plain_node = replace(
            node, envs={k: v for k, v in node.envs.items() if "${" not in v or not routing}
        )
        env, paths = self.scope.environment(plain_node, leader.master, "proxy")
        if key := access.common([server.keys for side in backends.values() for server in side]):
            env[access.PROXY_VARIABLE] = key
        wanted = (
            spec.script
            or env.get("DISAGGREGATED_PREFILL_PROXY_SCRIPT", "")
            or proxies.DEFAULT_SCRIPT
        )
        kind, note = proxies.choose(spec.kind, wanted, self.cluster)
        self.notes += [note] if note else []
        ports = []
        for purpose, first in kind.ports:
            ports.append(self._free(first))
            self._take(LEADER, ports[-1], purpose, "proxy")
        front = proxies.Front(
            leader.address,
            port,
            backends,
            cluster=self.cluster,
            script=self.cluster.proxy_script or wanted,
            command=spec.command,
            env=env,
            fill=lambda word, table: self.scope.value(word, table, ("proxy", "command")),
            ports=ports,
            startup=int(self._budgets["load"].seconds) + 60,
        )
        url = f"http://{url_host(leader.address)}:{port}"
        return Process(
            name="proxy",
            kind="proxy",
            argv=(*kind.argv(front), *spec.args),
            env=env,
            paths=paths,
            probe=Probe("http", f"{url}/{kind.health}"),
            api=url,
            grace=10.0,
        )

    def _encoders(self, leader: NodePlan) -> Process:
        """The proxy in front of encoders and the servers behind them: all its words are the
        case's.
        """
        env, paths = self.scope.environment(self.case.nodes[LEADER], leader.master, "proxy")
        path = ("epd_proxy_args",)
        args = [self.scope.value(word, env, path) for word in self.case.proxy.args]
        host, port = proxies.listens(args)
        self._take(LEADER, port, "proxy", "proxy")
        own = self.cluster.rehearsal is None and host in direct.HERE
        url = f"http://{url_host(host if own else leader.address)}:{port}"
        argv, note = proxies.encoders(args, self.cluster)
        self.notes += [note] if note else []
        return Process(
            name="proxy",
            kind="proxy",
            argv=argv,
            env=env,
            paths=paths,
            probe=Probe("http", f"{url}/health"),
            api=url,
            grace=10.0,
        )

    # Benchmarks, endpoint

    def _endpoint(self, nodes: Sequence[NodePlan]) -> Endpoint:
        if not nodes or errors_of(self.problems):
            return Endpoint("", "", "server")
        leader = nodes[LEADER]
        servers = [p for p in leader.processes if p.kind == "server"]
        if not servers:
            self._problem(
                "MN021",
                "node 0 has no rank, but it leads the fleet",
                "Give node 0 a dp_size_local of at least 1.",
                *self.case.nodes[LEADER].paths["config"],
            )
            return Endpoint("", "", "server")
        model = commandline.read(servers[0].argv).served_name or self.case.model
        proxies = [p for p in leader.processes if p.kind == "proxy"]
        if proxies:
            key = access.common([p.keys for node in nodes for p in node.processes])
            return Endpoint(proxies[0].api, model, "proxy", key)
        if not servers[0].api:
            self._problem(
                "MN021",
                "node 0 is headless, but benchmarks go to node 0",
                "Let node 0 have the API server; the other nodes join it with --headless.",
                *self.case.nodes[LEADER].paths["command"],
            )
            return Endpoint("", model, "server")
        return Endpoint(servers[0].api, model, "server", servers[0].access.key)

    def _benchmark(self, entry: Benchmark) -> BenchmarkPlan:
        path = ("benchmarks", entry.name, "dataset_path_local")
        local = self.scope.value(entry.dataset_path_local, self.cluster.env, path)
        entry = replace(entry, dataset_path_local=local)
        rehearsed = self.cluster.rehearsal is not None
        driver = drivers.chosen(self.options.driver, rehearsed)
        held, skip = conditions(entry), driver.skips_gates(entry, rehearsed)
        judged = driver.judges(rehearsed)
        entry, scaled = driver.load(entry, rehearsed)
        lasts = drivers.SMALL_SECONDS if driver.small(rehearsed) else drivers.SECONDS
        return BenchmarkPlan(entry, driver.name, held, skip, judged, scaled, lasts)

    def _drafts(self, plan: Plan) -> None:
        """What is asked of drafted tokens needs engines that draft."""
        asked = "spec_decode_acceptance" in self.case.content.kinds
        paths: list[tuple[str, ...]] = [("test_content",)] if asked else []
        for entry in self.case.benchmarks:
            paths += [("benchmarks", entry.name)] if entry.case_type == "spec_decode" else []
        if paths and not any(plan.drafting()):
            for path in paths:
                message = "asks for accepted drafts, but no engine has --speculative-config"
                self._problem("MN023", message, "Let the decoding servers draft.", *path)

    # Helpers

    def _take(self, node: int, port: int, purpose: str, process: str) -> None:
        self.ports.append(Port(node, port, purpose, process))

    def _free(self, first: int) -> int:
        taken = set(self._taken_on_leader())
        port = first
        while port in taken and port < 65535:
            port += 1
        return port

    def _taken_on_leader(self) -> Iterator[int]:
        for port in self.ports:
            if port.node == LEADER:
                yield from range(port.port, port.port + port.count)

    def _problem(self, rule: str, message: str, hint: str, *path: Any) -> None:
        self.problems.append(
            Problem(rule, message, self.case.place(*path), hint, field=".".join(map(str, path)))
        )


def _requirement(name: str, version: str) -> str:
    return f"{name}{version}" if version[:1] in "<>=!~" else f"{name}=={version}"
