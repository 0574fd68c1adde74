"""The nouns every step shares: case, cluster, plan, run directory, process, verdict.

Nothing here knows a verb or a backend. Needs only the standard library,
PyYAML, cerberus, requests and psutil.
"""

VERSION = "0.1.0"
