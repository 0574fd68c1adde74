"""The fault language: what it says, and what it refuses."""

from __future__ import annotations

import pytest

from rehearsal.base.faults import Fault, parse_faults

UNDERSTOOD = [
    ("crash@1", Fault("crash", 1, 1, None)),
    ("crash=7@1.server-0:ready", Fault("crash", 7, 1, "server-0", "ready")),
    ("slow@*", Fault("slow", 10, None, None)),
    ("slow=2.5@0:load", Fault("slow", 2.5, 0, None, "load")),
    ("kill9@0:ready+3", Fault("kill9", None, 0, None, "ready", 3)),
    ("hang@0:+1.5", Fault("hang", None, 0, None, "start", 1.5)),
    ("silent@2:request", Fault("silent", None, 2, None, "request", 0, 1)),
    ("garbage@2:request12", Fault("garbage", None, 2, None, "request", 0, 12)),
    ("empty@2:bench", Fault("empty", None, 2, None, "bench", 0, 1)),
    ("slow@0:bench2", Fault("slow", 10, 0, None, "bench", 0, 2)),
    ("miscount@0", Fault("miscount", None, 0, None)),
    ("low-acceptance@*:bench", Fault("low-acceptance", None, None, None, "bench", 0, 1)),
    ("ignore-term@*.pool:term", Fault("ignore-term", None, None, "pool", "term")),
    ("busy@1.npu-smi", Fault("busy", None, 1, "npu-smi")),
]

REFUSED = [
    ("crash", "WHAT[=ARG]@NODE"),
    ("crash@x", "WHAT[=ARG]@NODE"),
    ("explode@1", "no fault 'explode'"),
    ("crash=0@1", "exit code from 1 to 255"),
    ("crash=@1", "exit code from 1 to 255"),
    ("slow=-1@1", "a number over 0"),
    ("slow=0@1", "a number over 0"),
    ("hang=3@1", "takes no argument"),
    ("crash@1:later", "WHEN is start, load"),
    ("crash@1:request0", "WHEN is start, load"),
    ("crash@1:bench0", "WHEN is start, load"),
    ("crash@1:ready3", "WHEN is start, load"),
    ("crash@1:start+3", "WHEN is start, load"),
    ("crash@1:", "WHAT[=ARG]@NODE"),
    ("busy@1", "busy is a fault of npu-smi"),
    ("slow@1.npu-smi", "busy is a fault of npu-smi"),
]


@pytest.mark.parametrize(("text", "fault"), UNDERSTOOD)
def test_understands(text: str, fault: Fault) -> None:
    assert parse_faults(text) == (fault,)
    assert parse_faults(str(fault)) == (fault,)


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_refuses_nonsense(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_faults(f"slow@0; {text}")
    assert why in str(error.value)
    assert repr(text) in str(error.value)


def test_a_fault_without_process_is_for_every_server_of_the_node() -> None:
    fault = parse_faults("crash@1")[0]
    assert fault.concerns(1, "server")
    assert fault.concerns(1, "server-3")
    assert not fault.concerns(1, "pool")
    assert not fault.concerns(0, "server")
    assert parse_faults("crash@*.pool")[0].concerns(4, "pool")


def test_a_list_of_faults() -> None:
    assert [fault.what for fault in parse_faults("crash@1; slow=2@*;;hang@0:ready")] == [
        "crash",
        "slow",
        "hang",
    ]
    assert parse_faults("") == ()
