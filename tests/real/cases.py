"""Cases of the real runs: those of ``configs/cpu`` with other benchmarks, and a tiny one.

Enters: a directory. Leaves: a case file there.
"""

from __future__ import annotations

from pathlib import Path

CPU = Path(__file__).parents[2] / "configs" / "cpu"

PERFORMANCE = """\
  {name}:
    case_type: performance
    dataset_path_local: $DATASETS/arithmetic
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: {prompts}
    max_out_len: {tokens}
    batch_size: 2
"""
ACCURACY = """\
  accuracy:
    case_type: accuracy
    dataset_path_local: $DATASETS/arithmetic
    request_conf: vllm_api_general_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_chat_prompt
    num_prompts: 8
    max_out_len: 64
    batch_size: 4
    temperature: 0
    baseline: 31.25
    threshold: 25
"""


def performance(name: str, prompts: int, tokens: int, *more: str) -> str:
    """A performance benchmark; ``more`` are further lines of it."""
    text = PERFORMANCE.format(name=name, prompts=prompts, tokens=tokens)
    return text + "".join(f"    {line}\n" for line in more)


def case(folder: Path, name: str, *benchmarks: str, tiny: bool = False) -> Path:
    """A case of ``configs/cpu`` with other benchmarks, and perhaps with the random model."""
    text = (CPU / f"{name}.yaml").read_text(encoding="utf-8")
    if benchmarks:
        text = text[: text.index("\nbenchmarks:\n")] + "\nbenchmarks:\n" + "".join(benchmarks)
    if tiny:
        text = text.replace("smollm2-135m-instruct", "tiny-random-llama")
        text = text.replace("--served-model-name smollm2", "--served-model-name tiny")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'tiny-' if tiny else ''}{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path
