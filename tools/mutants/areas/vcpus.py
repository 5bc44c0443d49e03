"""vCPU contexts, iret and multicall: what a guest may make its processor into."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

CONTEXT: Final = "firmware/domain/context.py"
VCPUS: Final = "firmware/vcpus.py"
IRET: Final = "firmware/traps/iret.py"
MULTICALL: Final = "firmware/multicall.py"
GUEST: Final = "firmware/memory/guest.py"

AREA: Final = Area(
    "vcpus",
    (
        "tests/firmware/test_contexts.py",
        "tests/firmware/test_vcpus.py",
        "tests/firmware/test_calls.py",
        "tests/firmware/test_bounce.py",
    ),
    (
        Mutant(
            "context: addresses are canonical",
            CONTEXT,
            "if not all(map(canonical, addresses)) or not all(map(canonical, traps)):",
            "if not all(map(canonical, traps)):",
        ),
        Mutant(
            "context: trap handlers are canonical",
            CONTEXT,
            "if not all(map(canonical, addresses)) or not all(map(canonical, traps)):",
            "if not all(map(canonical, addresses)):",
        ),
        Mutant(
            "context: breakpoints outside Xen",
            CONTEXT,
            "not all(map(address_allowed, context.debugreg[:4]))\n            or (",
            "(",
        ),
        Mutant(
            "context: debug status and control",
            CONTEXT,
            "or (context.debugreg[6] | context.debugreg[7]) >> 32",
            "",
        ),
        Mutant(
            "context: the LDT's length",
            CONTEXT,
            "if context.ldt_ents > LONGEST_LDT or context.ldt_base",
            "if context.ldt_base",
        ),
        Mutant("context: the LDT's base", CONTEXT, "or context.ldt_base & PAGE_MASK or", "or"),
        Mutant(
            "context: user mode needs user tables",
            CONTEXT,
            "if not context.flags & arch_x86.VGCF_in_kernel and not context.ctrlreg[1]:",
            "if False:",
        ),
        Mutant(
            "context: the GDT is taken",
            CONTEXT,
            "result = self._roots.set_gdt(vcpu, frames[: (entries + 511) // 512], entries)",
            "result = 0",
        ),
        Mutant("context: a failure gives the GDT back", CONTEXT, "self._roots.set_gdt(vcpu, [], 0)", "pass"),
        Mutant(
            "context: the kernel root is taken",
            CONTEXT,
            "result = self._roots.take_root(vcpu, mfn, kernel=True)",
            "result = 0",
        ),
        Mutant(
            "context: the user root is taken",
            CONTEXT,
            "result = self._roots.take_root(vcpu, user, kernel=False)",
            "result = 0",
        ),
        Mutant(
            "context: a failure gives the kernel root back", CONTEXT, "self._roots.give_root(mfn)", "pass"
        ),
        Mutant(
            "context: ring 3 selectors",
            CONTEXT,
            "selectors[register] |= (0 if selectors[register] & 3 else 1) if pv32 else 3",
            "pass",
        ),
        Mutant(
            "context: no I/O privilege in the flags",
            CONTEXT,
            "core.set_eflags(entry.flags & ~EFLAGS_IOPL | EFLAGS_IF)",
            "core.set_eflags(entry.flags | EFLAGS_IF)",
        ),
        Mutant(
            "context: interrupts stay on",
            CONTEXT,
            "core.set_eflags(entry.flags & ~EFLAGS_IOPL | EFLAGS_IF)",
            "core.set_eflags(entry.flags & ~EFLAGS_IOPL)",
        ),
        Mutant(
            "context: control bits of the guest's only",
            CONTEXT,
            "vcpu.cr4 = context.ctrlreg[4] & CR4_GUEST",
            "vcpu.cr4 = context.ctrlreg[4]",
        ),
        Mutant(
            "vcpu_op: initialised once",
            VCPUS,
            "if target.initialised:\n            return -errno.EEXIST\n",
            "pass\n",
        ),
        Mutant(
            "vcpu_op: up only when initialised",
            VCPUS,
            "if not target.initialised:\n            return -errno.EINVAL\n",
            "pass\n",
        ),
        Mutant(
            "vcpu_op: a vCPU there is",
            VCPUS,
            "if number >= len(vcpu.domain.vcpus):\n            return -errno.ENOENT\n",
            "pass\n",
        ),
        Mutant(
            "vcpu_info: within a frame, aligned",
            VCPUS,
            "if request.offset > 4096 - INFO_SIZE or request.offset & (3 if vcpu.domain.pv32 else 7):",
            "if request.offset & (3 if vcpu.domain.pv32 else 7):",
        ),
        Mutant(
            "vcpu_info: aligned",
            VCPUS,
            "if request.offset > 4096 - INFO_SIZE or request.offset & (3 if vcpu.domain.pv32 else 7):",
            "if request.offset > 4096 - INFO_SIZE:",
        ),
        Mutant(
            "vcpu_info: of a vCPU that does not run",
            VCPUS,
            "if target is not vcpu and not target.pause_flags & PAUSE_DOWN:\n"
            "            return -errno.EINVAL\n"
            "        if target.info",
            "if target.info",
        ),
        Mutant(
            "vcpu_info: placed once",
            VCPUS,
            "if target.info and not target.domain.shared_info <= target.info < target.domain.shared_info + "
            "4096:\n"
            "            return -errno.EINVAL\n",
            "pass\n",
        ),
        Mutant(
            "vcpu_info: the frame is asked for",
            VCPUS,
            "problem = self._info_pages.take_info_frame(target, request.mfn)",
            "problem = 0",
        ),
        Mutant(
            "areas lie outside Xen",
            VCPUS,
            "if not vcpu.space.allowed(area, size):\n            raise GuestFault(area)\n",
            "pass\n",
        ),
        Mutant(
            "iret: user mode needs user tables",
            IRET,
            "if not vcpu.user_root:",
            "if False:",
        ),
        Mutant(
            "iret: ring 3",
            IRET,
            "cs = cs & 0xFFFF | 3\n        ss = ss & 0xFFFF | 3",
            "cs = cs & 0xFFFF\n        ss = ss & 0xFFFF",
        ),
        Mutant(
            "iret: no I/O privilege, no virtual-8086 mode, interrupts on",
            IRET,
            "core.set_eflags(flags & ~(EFLAGS_IOPL | EFLAGS_VM) | EFLAGS_IF)\n"
            "        self._memory.store8(vcpu.info + 1, 0 if flags & EFLAGS_IF else 1)\n"
            "        vcpu.nmi_masked = False\n"
            "        d = core.d",
            "core.set_eflags(flags)\n"
            "        self._memory.store8(vcpu.info + 1, 0 if flags & EFLAGS_IF else 1)\n"
            "        vcpu.nmi_masked = False\n"
            "        d = core.d",
        ),
        Mutant(
            "iret: ports close",
            IRET,
            "vcpu.iopl = flags & EFLAGS_IOPL\n            vcpu.close_ports()\n        q[RIP] = rip",
            "vcpu.iopl = flags & EFLAGS_IOPL\n        q[RIP] = rip",
        ),
        Mutant(
            "iret: only the assist gives I/O privilege",
            IRET,
            "if vcpu.domain.vm_assist & ARCHITECTURAL_IOPL:\n"
            "            vcpu.iopl = flags & EFLAGS_IOPL\n"
            "            vcpu.close_ports()\n"
            "        q[RIP] = rip",
            "vcpu.iopl = flags & EFLAGS_IOPL\n        vcpu.close_ports()\n        q[RIP] = rip",
        ),
        Mutant("iret of a 32-bit guest: not to ring 0", IRET, "if ring == 0:", "if False:"),
        Mutant("iret of a 32-bit guest: no virtual-8086 mode", IRET, "if flags & EFLAGS_VM:", "if False:"),
        Mutant(
            "iret: a code segment that loads",
            IRET,
            "elif not self._segments.load(vcpu, core, CS, cs):",
            "elif not self._segments.load(vcpu, core, CS, cs) and False:",
        ),
        Mutant(
            "iret: a stack segment that loads",
            IRET,
            "elif not self._segments.load(vcpu, core, SS, ss):",
            "elif not self._segments.load(vcpu, core, SS, ss) and False:",
        ),
        Mutant(
            "multicall: not within itself",
            MULTICALL,
            "if number == MULTICALL:\n                result = -errno.EINVAL\n            el",
            "",
        ),
        Mutant("multicall: an iret ends it", MULTICALL, "if number == IRET:", "if False:"),
        Mutant(
            "multicall: a call that blocks ends it",
            MULTICALL,
            "if vcpu.pause_flags and count:",
            "if False:",
        ),
        Mutant(
            "multicall: the list's range",
            MULTICALL,
            "if not space.allowed(call_list, size * count):\n            return -errno.EFAULT\n",
            "pass\n",
        ),
        Mutant(
            "multicall: a number there is",
            MULTICALL,
            "handlers[number] if number < LIMIT else None",
            "handlers[number % LIMIT]",
        ),
        Mutant(
            "multicall: calls of 32-bit guests", MULTICALL, "(pv32 and not self._compat[number])", "False"
        ),
        Mutant("multicall: long lists are interrupted", MULTICALL, "left = LONGEST", "left = count"),
        Mutant(
            "multicall: an entry in two pages",
            GUEST,
            "if entry & READABLE == READABLE and offset + codec.size <= 4096:",
            "if entry & READABLE == READABLE:",
        ),
        Mutant(
            "multicall: the result is the guest's to write",
            GUEST,
            "if entry & WRITABLE == WRITABLE:\n                self._store64",
            "if entry & READABLE == READABLE:\n                self._store64",
        ),
        Mutant(
            "multicall: a result that is not aligned",
            GUEST,
            "not va & 7 and self._generation == self._owner.generation:\n"
            "            entry = self._q[table + (va >> 12 & 511)]\n"
            "            if entry & WRITABLE",
            "self._generation == self._owner.generation:\n"
            "            entry = self._q[table + (va >> 12 & 511)]\n"
            "            if entry & WRITABLE",
        ),
        Mutant(
            "multicall: each entry at its turn",
            MULTICALL,
            "number, _result, *arguments = space.unpack_words(call_list, words)",
            "seen = locals().get('seen') or space.read(call_list, size * count)\n"
            "            number, _result, *arguments = words.unpack_from(seen, len(seen) - size * count)",
        ),
    ),
)
