"""The one place where the process environment is read.

Enters: ``os.environ``. Leaves: typed settings. Nothing else in ``steps``,
``k8s`` or ``ci`` looks at the environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from steps.core.errors import UsageError

#: Where a machine keeps what cases share: weights, data sets, files that all nodes see.
STORES = {"MODELS": "models", "DATASETS": "datasets", "SHARED_STORAGE": "shared"}
#: Names a case may use in commands though the image, not the case, sets them.
PASSED_THROUGH = (
    *STORES,
    "HOME",
    "WORKSPACE",
    "BENCHMARK_HOME",
    "CONFIG_BASE_PATH",
    "CONFIG_YAML_PATH",
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "USER",
)
#: Where the leader of a run listens, unless MULTINODE_CONTROL_PORT or a profile says otherwise.
CONTROL_PORT = 28999


@dataclass(frozen=True)
class Settings:
    """What the environment says about how to run, with its defaults."""

    cache: Path
    control_port_given: str
    lws_leader_address: str
    lws_worker_index: str
    workspace: str
    config_yaml_path: str
    config_base_path: str
    fail_tag: str
    token_given: str
    router: str
    ais_bench: str
    modelscope_cache: Path
    huggingface_cache: Path
    hub_download: bool
    ascend_log: Path
    github_step_summary: str
    github_actions: bool
    ci: bool
    no_color: bool
    columns: int
    path: str
    kubeconfig: str
    kubeconfig_b64: str
    proxy_script: str
    history: str
    pull_request: str
    ssh_agent: str
    unlocked: bool

    @property
    def token(self) -> str:
        """The run's secret; empty when none was given.

        Raises:
            UsageError: ``MULTINODE_TOKEN`` cannot be sent.
        """
        return usable_token(self.token_given, "MULTINODE_TOKEN")

    @property
    def control_port(self) -> int:
        """Where the leader listens for the other nodes.

        Raises:
            UsageError: ``MULTINODE_CONTROL_PORT`` is no port.
        """
        if not self.control_port_given:
            return CONTROL_PORT
        number = port(self.control_port_given)
        if number is None:
            raise UsageError(
                f"MULTINODE_CONTROL_PORT: found {self.control_port_given!r}, expected a port "
                "from 1 to 65535",
                f"Correct it, or unset it: the default is {CONTROL_PORT}.",
            )
        return number


def read() -> Settings:
    """The settings of this process, read now."""
    env = os.environ
    home = Path(env.get("HOME") or "/root")
    cache_home = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    return Settings(
        cache=Path(env.get("MULTINODE_CACHE") or cache_home / "multinode"),
        control_port_given=env.get("MULTINODE_CONTROL_PORT", ""),
        lws_leader_address=env.get("LWS_LEADER_ADDRESS", ""),
        lws_worker_index=env.get("LWS_WORKER_INDEX", ""),
        workspace=env.get("WORKSPACE", ""),
        config_yaml_path=env.get("CONFIG_YAML_PATH", ""),
        config_base_path=env.get("CONFIG_BASE_PATH", ""),
        fail_tag=env.get("FAIL_TAG", ""),
        token_given=env.get("MULTINODE_TOKEN", ""),
        router=env.get("MULTINODE_VLLM_ROUTER", ""),
        ais_bench=env.get("MULTINODE_AIS_BENCH", ""),
        modelscope_cache=Path(
            env.get("MODELSCOPE_CACHE") or home / ".cache" / "modelscope" / "hub"
        ),
        huggingface_cache=Path(
            env.get("HF_HUB_CACHE")
            or Path(env.get("HF_HOME") or cache_home / "huggingface") / "hub"
        ),
        hub_download=_yes(env.get("MULTINODE_HUB_DOWNLOAD"))
        and not _yes(env.get("HF_HUB_OFFLINE")),
        ascend_log=Path(env.get("ASCEND_PROCESS_LOG_PATH") or home / "ascend" / "log"),
        github_step_summary=env.get("GITHUB_STEP_SUMMARY", ""),
        github_actions=env.get("GITHUB_ACTIONS") == "true",
        ci=env.get("CI", "") not in ("", "false", "0"),
        no_color=bool(env.get("NO_COLOR")),
        columns=_number(env.get("COLUMNS"), 0),
        path=env.get("PATH", ""),
        kubeconfig=env.get("KUBECONFIG", ""),
        kubeconfig_b64=env.get("KUBECONFIG_B64", ""),
        proxy_script=env.get("DISAGGREGATED_PREFILL_PROXY_SCRIPT", ""),
        history=env.get("MULTINODE_HISTORY", ""),
        pull_request=_pull_request(
            env.get("MULTINODE_PULL_REQUEST", ""),
            env.get("GITHUB_EVENT_NAME", ""),
            env.get("GITHUB_REF", ""),
        ),
        ssh_agent=env.get("SSH_AUTH_SOCK", ""),
        unlocked=_yes(env.get("MULTINODE_UNLOCKED")),
    )


@dataclass(frozen=True)
class GitHubJob:
    """What GitHub tells a job of its workflow."""

    api: str
    server: str
    token: str
    repository: str
    run: str
    event: str

    @property
    def url(self) -> str:
        """Where people see the run of the workflow."""
        return f"{self.server}/{self.repository}/actions/runs/{self.run}"


def github() -> GitHubJob:
    """The job that this process is part of; texts are empty outside of one."""
    env = os.environ
    return GitHubJob(
        api=env.get("GITHUB_API_URL", ""),
        server=env.get("GITHUB_SERVER_URL", ""),
        token=env.get("GITHUB_TOKEN", ""),
        repository=env.get("GITHUB_REPOSITORY", ""),
        run=env.get("GITHUB_RUN_ID", ""),
        event=env.get("GITHUB_EVENT_PATH", ""),
    )


def usable_token(token: str, source: str) -> str:
    """A run's token, which travels in a header of HTTP.

    Raises:
        UsageError: a header cannot carry it.
    """
    if re.fullmatch(r"[\x21-\x7e]*", token) and len(token) <= 4096:
        return token
    raise UsageError(
        f"{source}: found a token with a space, a line break or another sign than ASCII's, or a "
        "very long one",
        "Take letters and digits, such as `openssl rand -hex 16` prints.",
    )


def inherited() -> dict[str, str]:
    """A copy of this process's environment, for a child to start from."""
    return dict(os.environ)


def passed_through() -> dict[str, str]:
    """Image variables that a case's commands may refer to."""
    return {name: os.environ[name] for name in PASSED_THROUGH if os.environ.get(name)}


def port(text: str) -> int | None:
    """The port that ``text`` says; None when it says none."""
    number = _number(text, 0)
    return number if 0 < number < 65536 else None


def _pull_request(given: str, event: str, ref: str) -> str:
    """What says that this run tests a change that is not merged; empty when nothing does."""
    if given:
        return f"MULTINODE_PULL_REQUEST={given}"
    if event.startswith("pull_request") or event in ("issue_comment", "merge_group"):
        return f"GITHUB_EVENT_NAME={event}"
    return f"GITHUB_REF={ref}" if ref.startswith("refs/pull/") else ""


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else default


def _yes(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true", "yes", "on")
