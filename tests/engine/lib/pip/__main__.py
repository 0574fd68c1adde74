"""``python -m pip install ...``: notes when, and what; ``TEST_PIP`` is ``sleep=S fail=CODE``."""

import json
import os
import sys
import time
from pathlib import Path

words = dict(word.split("=") for word in os.environ.get("TEST_PIP", "").split())
began = time.time()
time.sleep(float(words.get("sleep", "0")))
entry = {
    "argv": sys.argv[1:],
    "at": os.environ.get("LOCAL_IP"),
    "began": began,
    "over": time.time(),
}
with Path(os.environ["TEST_PIP_LOG"]).open("a") as out:
    out.write(json.dumps(entry) + "\n")
if "fail" in words:
    print("ERROR: No matching distribution found for", sys.argv[-1])
sys.exit(int(words.get("fail", "0")))
