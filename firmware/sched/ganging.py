"""What the three forms of gang scheduling share: their parameters, and who belongs together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import Parameter, Value
from firmware.sched.policy import Policy

STRICT: Final = "strict"
RELAXED: Final = "relaxed"
BALANCE: Final = "balance"

SETTINGS: Final = (
    Parameter("form", STRICT, "all of a gang or none; leaders stop; or siblings on different CPUs only",
              choices=(STRICT, RELAXED, BALANCE)),
    Parameter("slot_ms", 10, "how long a gang, or a vCPU, runs in turn", "ms", 1, 1000),
    Parameter("alternate", False, "strict: a CPU whose place in the matrix is free runs others meanwhile"),
)
SHARES: Final = (
    Parameter("gang", True, "whether the domain's vCPUs belong together"),
    Parameter("skew_us", 3_000, "relaxed: by how much one may lead the slowest", "us", 1_000, 1_000_000),
)

Gang = tuple[int, int | None]
"""A domain, or one vCPU of a domain whose vCPUs do not belong together."""


def gang_of(vcpu: VCpu, share: Mapping[str, Value]) -> Gang:
    """Which gang a vCPU is in."""
    return vcpu.domain.id, None if share["gang"] else vcpu.id


class Form(Policy):
    """One form: a policy that has its shares from the policy whose form it is."""

    name = "gang"
    SETTINGS = SETTINGS
    SHARES = SHARES
