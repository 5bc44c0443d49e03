"""How domains end: shut down by themselves, crash, and are destroyed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from firmware.abi import sched
from firmware.domain.crash import CrashInfo, RecentCall
from firmware.domain.domain import SHUTDOWN_STATES, Domain, DomainState
from firmware.domain.vcpu import PAUSE_CONTROL, RECENT_CALLS, VCpu
from firmware.hypercalls import GuestFault
from machine.registers import (
    CR0,
    CR2,
    CR3,
    CR4,
    FS_BASE,
    GS_BASE,
    R8,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    SEG_SELECTOR,
)

CODE_BYTES: Final = 32
STACK_WORDS: Final = 256
GENERAL: Final = (
    ("rax", RAX),
    ("rbx", RBX),
    ("rcx", RCX),
    ("rdx", RDX),
    ("rsi", RSI),
    ("rdi", RDI),
    ("rbp", RBP),
    ("rsp", RSP),
    *((f"r{number}", R8 + number - 8) for number in range(8, 16)),
    ("rip", RIP),
    ("cr0", CR0),
    ("cr2", CR2),
    ("cr3", CR3),
    ("cr4", CR4),
    ("fs_base", FS_BASE),
    ("gs_base", GS_BASE),
)
SELECTORS: Final = ("es", "cs", "ss", "ds", "fs", "gs")


class Scheduler(Protocol):
    """What lifecycle needs of the scheduler."""

    def hold(self, vcpu: VCpu, flag: int) -> None: ...
    def now(self) -> int: ...


class Lifecycle:
    """The domains of the machine and their ends."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.scheduler: Scheduler
        self._log = log
        self.domains: dict[int, Domain] = {}
        self.on_end: list[Callable[[Domain], None]] = []
        """Called once for each domain that ends, in order."""

    def by_id(self, number: int) -> Domain | None:
        """The domain of that number."""
        return self.domains.get(number)

    def shutdown(self, domain: Domain, reason: int, caller: VCpu | None = None) -> None:
        """The domain says why it stops (SHUTDOWN_* of sched.h), by a hypercall of `caller` if it is one; its
        vCPUs do not run any more.
        """
        if domain.state.ended:
            return
        if domain.shutdown_code is None:
            domain.shutdown_code = reason
        code = domain.shutdown_code
        state = SHUTDOWN_STATES[code] if code < len(SHUTDOWN_STATES) else DomainState.CRASH
        if state is DomainState.CRASH and domain.crash is None:
            own = code == sched.SHUTDOWN_crash
            vcpu = caller or next((vcpu for vcpu in domain.vcpus if vcpu.loaded), domain.vcpus[0])
            domain.crash = self._snapshot(
                vcpu,
                "it reported a crash of its own (SHUTDOWN_crash)" if own
                else f"it shut down for a reason that does not exist ({code})",
            )
            if caller is not None:
                calls = (*domain.crash.recent_calls, *_call_made(domain.crash))
                domain.crash = replace(domain.crash, recent_calls=calls)
        self._end(domain, state)

    def crash(self, vcpu: VCpu, reason: str) -> None:
        """The domain did something it cannot recover from."""
        domain = vcpu.domain
        if domain.state.ended:
            return
        domain.shutdown_code = sched.SHUTDOWN_crash
        domain.crash = self._snapshot(vcpu, reason)
        self._log(f"domain {domain.id} ({domain.name}) crashed on vCPU {vcpu.id}: {reason}")
        self._end(domain, DomainState.CRASH)

    def _end(self, domain: Domain, state: DomainState) -> None:
        domain.state = state
        for vcpu in domain.vcpus:
            self.scheduler.hold(vcpu, PAUSE_CONTROL)
        for call in self.on_end:
            call(domain)

    def _snapshot(self, vcpu: VCpu, reason: str) -> CrashInfo:
        registers: dict[str, int] = {}
        code = b""
        stack: list[int] = []
        if vcpu.loaded:
            core = vcpu.core
            registers = {name: core.q[index] for name, index in GENERAL}
            registers["rflags"] = core.eflags()
            registers |= {name: core.d[SEG_SELECTOR[index]] & 0xFFFF for index, name in enumerate(SELECTORS)}
            code = self._readable(vcpu, registers["rip"], CODE_BYTES)
            width = 4 if vcpu.domain.pv32 else 8
            data = self._readable(vcpu, registers["rsp"], STACK_WORDS * width)
            stack = [
                int.from_bytes(data[at : at + width], "little")
                for at in range(0, len(data) - width + 1, width)
            ]
        calls = [
            call
            for index in range(RECENT_CALLS)
            if (call := vcpu.recent_calls[(vcpu.recent_at + index) % RECENT_CALLS]) is not None
        ]
        return CrashInfo(
            reason,
            vcpu.id,
            self.scheduler.now(),
            vcpu.in_kernel,
            registers,
            code,
            tuple(stack),
            tuple(RecentCall(*call) for call in calls),
            not vcpu.domain.pv32,
        )

    @staticmethod
    def _readable(vcpu: VCpu, address: int, length: int) -> bytes:
        """As many of the bytes at a guest address as its page tables let one read."""
        data = b""
        while len(data) < length:
            at = address + len(data) & (1 << 64) - 1
            part = min(length - len(data), 4096 - (at & 4095))
            try:
                data += vcpu.read_here(at, part)
            except GuestFault:
                break
        return data


def _call_made(crash: CrashInfo) -> tuple[RecentCall, ...]:
    """The hypercall being made, as its registers say; none when they are not known."""
    registers = crash.registers
    if not registers:
        return ()
    first, second = ("rdi", "rsi") if crash.long_mode else ("rbx", "rcx")
    return (RecentCall(registers["rax"], registers[first], registers[second], None),)
