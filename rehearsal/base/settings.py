"""The environment of a stand-in, read once: the only place in rehearsal/ that looks at
`os.environ`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rehearsal.base.faults import Fault, parse_faults


@dataclass(frozen=True)
class Settings:
    """What a rehearsal tells a stand-in. Times in seconds unless the name says otherwise."""

    address: str | None
    node_index: int
    process: str
    devices: int | None
    load_seconds: float
    ttft: float
    tpot: float
    join_seconds: float
    stop_seconds: float
    orphan_seconds: float
    faults: tuple[Fault, ...]
    visible: tuple[str, ...] | None
    nixl_port: int
    dev_mode: bool
    api_key: str
    key: str
    acceptance: tuple[float, ...]
    run_dir: Path | None

    def stage(self) -> int | None:
        """The benchmark that is on, 0 before the first; None where no leader says so here."""
        try:
            return int((self.run_dir / "stage").read_text()) if self.run_dir else None
        except (OSError, ValueError):
            return None

    @property
    def own_address(self) -> str:
        """The address peers find this node under."""
        return self.address or "127.0.0.1"

    @property
    def device_ids(self) -> list[str] | None:
        """Devices this process may use; None when nobody said."""
        if self.visible is not None:
            return list(self.visible)
        return None if self.devices is None else [str(n) for n in range(self.devices)]

    def bind_address(self, host: str | None) -> str:
        """Where a server told to listen on `host` listens: a wildcard is the own address."""
        if self.address and host in (None, "", "0.0.0.0", "::", "[::]"):
            return self.address
        return (host or "0.0.0.0").strip("[]")

    def peer_address(self, host: str) -> str:
        """A loopback name is this very node, although all nodes here share one loopback."""
        if self.address and host in ("127.0.0.1", "localhost", "::1"):
            return self.address
        return host.strip("[]")

    def owns(self, host: str) -> bool:
        """Whether this node could bind `host`: on a real node another node's address cannot be
        bound.
        """
        return (
            not self.address or not host.startswith("127.") or host in (self.address, "127.0.0.1")
        )


def from_environ(environ: Mapping[str, str], process: str) -> Settings:
    """Read the contract. Raises ValueError that names the variable."""

    def number(name: str, default: float) -> float:
        text = environ.get(name, "").strip() or str(default)
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{name}={text!r}: expected a number") from None
        if value < 0:
            raise ValueError(f"{name}={text!r}: expected a number that is not negative")
        return value

    visible = None
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if environ.get(name, "").strip():
            visible = tuple(part.strip() for part in environ[name].split(",") if part.strip())
            break
    told = environ.get("REHEARSAL_ACCEPTANCE", "")
    if not re.fullmatch(r"((0(\.\d+)?|1(\.0+)?)(,|$))*", told):
        raise ValueError(f"REHEARSAL_ACCEPTANCE={told!r}: expected rates from 0 to 1, with commas")
    rates = tuple(float(rate) for rate in told.split(",") if rate)
    run = re.fullmatch(r"(.+?):\d+(?::[^/]*)?", environ.get("MULTINODE_RUN", ""))
    try:
        faults = parse_faults(environ.get("REHEARSAL_FAULTS", ""))
    except ValueError as error:
        raise ValueError(f"REHEARSAL_FAULTS: {error}") from None
    return Settings(
        address=environ.get("REHEARSAL_ADDRESS", "").strip() or None,
        node_index=int(number("REHEARSAL_NODE_INDEX", 0)),
        process=environ.get("REHEARSAL_PROCESS", "").strip() or process,
        devices=int(number("REHEARSAL_DEVICES", 0))
        if environ.get("REHEARSAL_DEVICES", "").strip()
        else None,
        load_seconds=number("REHEARSAL_LOAD_SECONDS", 1.0),
        ttft=number("REHEARSAL_TTFT_MS", 20) / 1000,
        tpot=number("REHEARSAL_TPOT_MS", 2) / 1000,
        join_seconds=number("REHEARSAL_JOIN_SECONDS", 30),
        stop_seconds=number("REHEARSAL_STOP_SECONDS", 0),
        orphan_seconds=number("REHEARSAL_ORPHAN_SECONDS", 120),
        faults=faults,
        visible=visible,
        nixl_port=int(number("VLLM_NIXL_SIDE_CHANNEL_PORT", 5600)),
        dev_mode=bool(number("VLLM_SERVER_DEV_MODE", 0)),
        api_key=environ.get("VLLM_API_KEY", ""),
        key=environ.get("OPENAI_API_KEY", ""),
        acceptance=rates,
        run_dir=Path(run[1]) if run else None,
    )


def read(process: str) -> Settings:
    """The settings of this process, or exit code 2 with the reason."""
    try:
        return from_environ(os.environ, process)
    except ValueError as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        sys.exit(2)


def memcache_config_path() -> str | None:
    """Where memcache's MetaService is told to find its configuration."""
    return os.environ.get("MMC_META_CONFIG_PATH")
