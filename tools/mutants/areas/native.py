"""The native page-table update: each of its conditions, and what it counts.

Not listed: frame numbers beyond memory and addresses the TLB does not show, without whose checks the process
reads where nothing is, and ends or finds no owner there.
"""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

CODE: Final = "firmware/memory/native.s"


def _unconditional(name: str, test: str, jump: str) -> Mutant:
    """Without this check."""
    return Mutant(name, CODE, f"{test}\n    {jump}\n", f"{test}\n")


AREA: Final = Area(
    "native",
    ("tests/firmware/test_native.py",),
    (
        _unconditional("only mmu_update", "cmp qword ptr [rdi + {RAX}], {MMU_UPDATE}", "jne left"),
        _unconditional("only one request", "cmp qword ptr [rdi + {RSI}], 1", "jne left"),
        _unconditional("without a done counter", "cmp qword ptr [rdi + {RDX}], 0", "jne left"),
        _unconditional("only of the domain itself", "cmp qword ptr [rdi + {R10}], {DOMID_SELF}", "jne left"),
        _unconditional("not while single-stepping", "test dword ptr [rdi + {R11}], {TRAP_FLAG}", "jnz left"),
        _unconditional("not with an event to deliver", "cmp byte ptr [rax + 1], 0", "je left"),
        _unconditional("not across a page", "cmp eax, {LAST_REQUEST}", "ja left"),
        _unconditional("only plain updates", "test r8b, {MODE_MASK}", "jnz left"),
        _unconditional("only an L1 table", "cmp edx, {L1_VALIDATED}", "jne left"),
        _unconditional("only a table in use", "cmp rdx, {ONE}", "jb left"),
        _unconditional("only a table without code", "cmp byte ptr [rdx + rcx], 0", "jne left"),
        _unconditional("only where nothing was", "test byte ptr [r8], {PRESENT}", "jnz left"),
        _unconditional("no cache attributes", "test r9b, {L1_DISALLOWED}", "jnz left"),
        _unconditional("only a writable frame for writing", "cmp eax, {WRITABLE_VALIDATED}", "jne left"),
        Mutant(
            "only an own table",
            CODE,
            "cmp rdx, [rsi + {TAG}]\n    jne left\n    mov r11",
            "cmp rdx, [rsi + {TAG}]\n    mov r11",
        ),
        Mutant(
            "only an own frame",
            CODE,
            "cmp rdx, [rsi + {TAG}]\n    jne left\n    movabs",
            "cmp rdx, [rsi + {TAG}]\n    movabs",
        ),
        Mutant(
            "only a frame with references, and room for more",
            CODE,
            "cmp rax, rdx\n    jae left\n    test r9b",
            "cmp rax, rdx\n    test r9b",
        ),
        Mutant(
            "only a frame used for writing, with room for more",
            CODE,
            "cmp rax, rdx\n    jae left\n    and eax",
            "cmp rax, rdx\n    and eax",
        ),
        Mutant("what is mapped is referred to", CODE, "add qword ptr [r10 + rcx * 8], {ONE}", ""),
        Mutant("what is mapped for writing is typed", CODE, "add qword ptr [r11 + rcx * 8], {ONE}", ""),
        Mutant("entries of the kernel are marked", CODE, "or r9, rdx", ""),
        Mutant("entries of users are global", CODE, "or r9, {GLOBAL}", ""),
        Mutant("addresses of the hypervisor are refused", CODE, "cmp rdx, rax\n    jb left", "cmp rdx, rax"),
        Mutant(
            "a vcpu_info that moves is followed",
            "firmware/domain/vcpu.py",
            "self.native[INFO] = at",
            "pass",
        ),
        Mutant(
            "32-bit vCPUs are not served",
            "firmware/memory/native.py",
            "core.native = 0\n            return",
            "pass",
        ),
    ),
)
