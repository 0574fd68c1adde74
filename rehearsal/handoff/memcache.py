"""memcache's MetaService, stood in for: reads the file MMC_META_CONFIG_PATH names and binds what it
says.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NoReturn

from rehearsal.base.settings import memcache_config_path, read
from rehearsal.handoff.pool import Pool

WANTED = ("meta_service_url", "config_store_url")


def read_config(text: str) -> dict[str, str]:
    """Keys without their `ock.mmc.` prefix, from `key = value` lines or a JSON object. Raises
    ValueError.
    """
    if text.lstrip().startswith("{"):
        pairs = {str(key): str(value) for key, value in json.loads(text).items()}
    else:
        lines = (line.split("#", 1)[0] for line in text.splitlines())
        pairs = {
            key.strip(): value.strip()
            for key, mark, value in (line.partition("=") for line in lines)
            if mark
        }
    return {key.rsplit(".", 1)[-1]: value.strip('"') for key, value in pairs.items()}


def address(url: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`. Raises ValueError."""
    shape = re.fullmatch(r"(?:\w+://)?(\[[^\]]+\]|[^:/]+):(\d+)/?", url)
    if not shape:
        raise ValueError(f"{url!r} is not scheme://host:port")
    return shape[1].strip("[]"), int(shape[2])


def main() -> NoReturn:
    """What `MetaService.main()` of the stand-in module runs."""
    settings = read("pool")
    path = memcache_config_path()
    try:
        if not path:
            raise ValueError("MMC_META_CONFIG_PATH is not set")
        config = read_config(Path(path).read_text(encoding="utf-8"))
        missing = [name for name in WANTED if name not in config]
        if missing:
            raise ValueError(f"{path} has no {', '.join(missing)}")
        ports = [address(config[name]) for name in WANTED]
        metrics = address(config["metrics_url"]) if "metrics_url" in config else None
    except (OSError, ValueError) as error:
        print(f"MetaService: invalid configuration: {error}", file=sys.stderr)
        sys.exit(1)
    Pool(settings, "MetaService", ports, metrics).run()
