"""What the page-table hypercalls share: whose memory they may name, which cores they flush, restarts."""

from __future__ import annotations

from typing import Final

from firmware.abi import xen
from firmware.abi.errno import EPERM, ESRCH
from firmware.hypercalls import CONTINUE, GuestFault, HypercallError
from firmware.memory.owner import DOMID_IO, DOMID_XEN, Core, Domain, Domains, MemoryOwner, VCpu

PREEMPTED: Final = 1 << 31
"""MMU_UPDATE_PREEMPTED (x86 mm.c): this is the rest of a request begun earlier."""
COUNT_MASK: Final = 0xFFFF_FFFF
WORK_DONE: Final = PREEMPTED
"""The count of a call without requests: nothing is left but to answer what is in the place of the foreign
domain.
"""
SLICE: Final = 1024
"""Requests done before a call is restarted."""


def page_owner(domains: Domains, domain: Domain, domid: int) -> tuple[MemoryOwner | None, int]:
    """The memory a foreign-domain argument names, and 0 or -EPERM (get_pg_owner and the default XSM
    policy).

    Raises HypercallError(ESRCH) for an unknown domain and for the caller's own number.
    """
    if domid == xen.DOMID_SELF:
        return domain.memory, 0
    if domid == DOMID_IO:
        return None, 0
    if domid == DOMID_XEN:
        return None, -EPERM
    if domid == domain.id:
        raise HypercallError(ESRCH)
    foreign = domains.by_id(domid)
    if foreign is None:
        raise HypercallError(ESRCH)
    return foreign.memory, -EPERM


def again_for_result(vcpu: VCpu, result: int) -> int:
    """All requests are answered with `result`, and a table has yet to be taken apart: the call is made again,
    with no requests and the result in the place of the foreign domain (as in Xen's do_mmuext_op).
    """
    vcpu.restart(0, WORK_DONE, 0, result & COUNT_MASK)
    return CONTINUE


def result_of(foreigndom: int) -> int:
    """What such a call answers: the low 32 bits, signed."""
    return (foreigndom & COUNT_MASK ^ 1 << 31) - (1 << 31)


def cores_of(vcpu: VCpu, bitmap: int) -> list[Core]:
    """The cores on which the vCPUs of a guest's bitmap may have translations (vcpumask_to_pcpumask)."""
    domain = vcpu.domain
    vcpus = domain.vcpus
    width = 32 if domain.pv32 else 64
    cores: list[Core] = []
    dirty = domain.memory.cores
    for bias in range(0, len(vcpus), width):
        at = bitmap + bias // 8
        mask = vcpu.space.read32(at) if width == 32 else vcpu.space.read64(at)
        for bit in range(min(width, len(vcpus) - bias)):
            if mask >> bit & 1:
                target = vcpus[bias + bit]
                if target is not None and target.core in dirty and target.core not in cores:
                    cores.append(target.core)
    return cores


def read_done(vcpu: VCpu, pdone: int) -> int:
    """What an interrupted request had done before; 0 when its counter cannot be read."""
    if not pdone:
        return 0
    try:
        return vcpu.space.read32(pdone)
    except GuestFault:
        return 0


def write_done(vcpu: VCpu, pdone: int, done: int) -> None:
    """Store the done counter; one that cannot be written is ignored."""
    try:
        vcpu.space.write32(pdone, done & COUNT_MASK)
    except GuestFault:
        return
