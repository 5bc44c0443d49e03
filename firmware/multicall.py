"""multicall: several hypercalls for the price of one trap.

Each entry is read at its turn, for calls before it may have written it, and its result is written back to it.
An iret among them ends the batch, as the context it returns to is not the batch's any more. After a call that
blocks the vCPU the rest follows when it runs again. Source: xen.h (multicall_entry); behaviour of
xen/common/multicall.c and pv/hypercall.c.
"""

from __future__ import annotations

from typing import Final

from firmware.abi import errno, xen
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import CONTINUE, LIMIT, GuestFault, HypercallError, HypercallTable

IRET: Final = 23
MULTICALL: Final = 13
WORD: Final = (1 << 64) - 1
WORD32: Final = (1 << 32) - 1
LONGEST: Final = 256
"""Entries run before the call is restarted for the rest, so that events and time limits are seen."""
ENTRY_NS: Final = 1_000
"""What an entry of so long a list costs in virtual time."""


class Multicall:
    """The handler."""

    def __init__(self, table: HypercallTable) -> None:
        self._table = table
        self._arity = {
            False: [len(row.arguments) if row else 0 for row in table.rows],
            True: [len(row.compat_arguments) if row else 0 for row in table.rows],
        }

        self._compat = [bool(row and row.pv32) for row in table.rows]

    def register(self, table: HypercallTable) -> None:
        """Put multicall into the table."""
        table.register("multicall", self.multicall)

    def multicall(self, vcpu: VCpu, call_list: int, count: int) -> int:
        """Hypercall 13."""
        count &= WORD32
        pv32 = vcpu.domain.pv32
        layout = xen.multicall_entry.w32 if pv32 else xen.multicall_entry.w64
        size = layout.size
        result_size = 4 if pv32 else 8
        result_offset = layout.offset["result"]
        mask = WORD32 if pv32 else WORD
        words = layout.codec
        space = vcpu.space
        table = self._table
        handlers = table.handlers
        counts = table.counts
        arity = self._arity[pv32]
        if not space.allowed(call_list, size * count):
            return -errno.EFAULT
        left = LONGEST
        while count:
            if not left:
                vcpu.core.charge(LONGEST * ENTRY_NS)
                vcpu.restart(call_list, count)
                return CONTINUE
            left -= 1
            number, _result, *arguments = space.unpack_words(call_list, words)
            handler = handlers[number] if number < LIMIT else None
            if number == MULTICALL:
                result = -errno.EINVAL
            elif handler is None or (pv32 and not self._compat[number]):
                result = table.absent(number)
            else:
                counts[number] += 1
                try:
                    result = handler(vcpu, *arguments[: arity[number]])
                except HypercallError as error:
                    result = -error.errno
                if number == IRET:
                    if vcpu.in_kernel:
                        self._result(vcpu, call_list + result_offset, result, result_size)
                    return result
            if result == CONTINUE:
                again = vcpu.restarted or ()
                arguments[: len(again)] = (value & mask for value in again)
                space.write(call_list, words.pack(number, _result, *arguments))
                vcpu.restart(call_list, count)
                return CONTINUE
            if pv32:
                space.write32(call_list + result_offset, result & mask)
            else:
                space.write64(call_list + result_offset, result & mask)
            call_list += size
            count -= 1
            if vcpu.pause_flags and count:
                vcpu.restart(call_list, count)
                return CONTINUE
        return 0

    @staticmethod
    def _result(vcpu: VCpu, address: int, result: int, size: int) -> None:
        """The result of an iret, for a guest that left its list where it can be written."""
        try:
            vcpu.space.write(address, (result & (1 << 8 * size) - 1).to_bytes(size, "little"))
        except GuestFault:
            return
