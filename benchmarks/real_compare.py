"""Two settings of real vLLM on a CPU beside each other, and the picture in docs/compare.md.

    python benchmarks/real_compare.py --picture docs/compare.svg
    python benchmarks/real_compare.py --from runs/compare-... --picture docs/compare.svg

`--max-num-seqs 1` is A, 8 is B, under 8 requests at once of `vllm bench serve`. Needs the
environment of docs/real-cpu.md; some 10 minutes on a quiet machine of two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ci.compare import pictures
from ci.tools.canvas import COLOURS

ROOT = Path(__file__).resolve().parents[1]
PERF = (
    "benchmarks.perf={case_type: performance, dataset_conf: random, num_prompts: 16, "
    "request_conf: vllm_api_stream_chat, input_len: 64, max_out_len: 32, batch_size: 8}"
)
METRIC = "perf output_throughput"


def compared(home: Path) -> int:
    """The exit code of the comparison."""
    argv = [sys.executable, "-m", "ci.compare.compare", "cpu/smollm2.yaml", "--on", "local"]
    argv += ["--bench", "vllm-bench", "--metric", METRIC, "--dir", str(home)]
    for side, many in (("a", 1), ("b", 8)):
        setting = f"deployment.0.server_cmd+= --max-num-seqs {many}"
        argv += [f"--{side}-set", setting, f"--{side}-set", PERF]
    return subprocess.run(argv, cwd=ROOT, check=False).returncode


def picture(home: Path) -> str:
    """Both samples, with colours that need no page."""
    content = json.loads((home / "compare.json").read_text())
    one = next(one for one in content["metrics"] if one["name"] == METRIC)
    names = {"--max-num-seqs 1": one["a"], "--max-num-seqs 8": one["b"]}
    text = pictures.samples(METRIC, names, "token/s, a point for each start")
    for name, (_, colour) in COLOURS.items():
        text = text.replace(f"var(--plot-{name})", colour)
    text = text.replace("var(--font)", "sans-serif")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return text.replace("<svg ", f"<svg {spaces} ", 1) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--from", dest="home", type=Path, help="a comparison that is over")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    code = 0
    home = arguments.home or Path(tempfile.mkdtemp(prefix="compare-")) / "out"
    if not arguments.home:
        code = compared(home)
    if arguments.picture:
        arguments.picture.write_text(picture(home), encoding="utf-8")
    print(f"everything is in {home}")
    return int(code not in (0, 1))


if __name__ == "__main__":
    sys.exit(main())
