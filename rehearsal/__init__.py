"""Strict stand-ins for `vllm`, `npu-smi`, `mooncake_master`, memcache's MetaService, vllm-router.

They are put first on PATH in a rehearsal. Standard library only; nothing here imports `steps`,
so a stand-in cannot agree with a bug of the harness.
"""
