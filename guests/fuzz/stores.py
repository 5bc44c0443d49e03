"""The forms in which `mmufuzz` stores to tables directly, through whatever maps them."""
from __future__ import annotations

from typing import Final

from guests.fuzz.support import chance, choose, draw, guarded
from guests.fuzz.tables import L1
from guests.macros import say

FORMS: Final[dict[str, tuple[str, ...]]] = {
    "mov8": ("mov [r12], r13",),
    "mov4": ("mov [r12], r13d",),
    "mov4high": ("mov rax, r13", "shr rax, 32", "mov [r12 + 4], eax"),
    "mov2": ("movzx eax, word ptr [r12]", "and eax, 0xf000", "mov ecx, r13d", "and ecx, 0xfff", "or eax, ecx",
             "mov [r12], ax"),
    "mov1": ("mov [r12], r13b",),
    "xchg": ("mov rax, r13", "xchg [r12], rax"),
    "cmpxchg": ("mov rax, [r12]", "lock cmpxchg [r12], r13"),
    "cmpxchg4": ("mov eax, [r12]", "lock cmpxchg [r12], r13d"),
    "cmpxchg_other": ("mov rax, [r12]", "not rax", "cmpxchg [r12], r13"),
    "cmpxchg16b": ("mov rax, [r12]", "mov rdx, [r12 + 8]", "mov rbx, r13", "mov rcx, rdx",
                   "lock cmpxchg16b [r12]"),
    "or": ("lock or qword ptr [r12], r14",),
    "or_plain": ("or qword ptr [r12], r14",),
    "and": ("mov rax, r14", "not rax", "lock and qword ptr [r12], rax"),
    "and_plain": ("mov rax, r14", "not rax", "and qword ptr [r12], rax"),
    "btr": ("lock btr qword ptr [r12], r15",),
    "bts": ("lock bts qword ptr [r12], r15",),
    "btc_plain": ("btc qword ptr [r12], r15",),
    "inc": ("inc qword ptr [r12]",),
    "dec_lock": ("mov rax, [r12]", "test al, 15", "jz store_not_made", "lock dec qword ptr [r12]"),
    "xor4": ("xor dword ptr [r12], r14d",),
    "xor1": ("xor byte ptr [r12 + 7], 0x80",),
    "or1": ("or byte ptr [r12 + 1], 2",),
    "xadd": ("xor eax, eax", "lock xadd [r12], rax"),
    "movnti": ("movnti [r12], r13",),
    "movq": ("movq xmm0, r13", "movq qword ptr [r12], xmm0"),
    "movups": ("pxor xmm0, xmm0", "movups [r12], xmm0"),
    "stos": ("mov rdi, r12", "mov rax, r13", "stosq"),
    "rep_stos": ("mov rdi, r12", "mov eax, r13d", "and eax, 0xffe", "mov ecx, 2", "rep stosq"),
    "unaligned": ("mov eax, r13d", "and eax, 0xffe", "mov [r12 + 4], rax"),
    "across": ("mov eax, r13d", "and eax, 0xffe", "or r12, 0xff8", "mov [r12 + 4], rax"),
}
"""Name -> instructions: r12 -> a word, r13 = an entry, r14 = one of its flags, r15 = that flag's bit number.
They may change rbx too."""

_ROUTINES: Final = "\n".join(
    "\n".join((f"store_{name}:", *code, "ret")) for name, code in FORMS.items()
)

STORES: Final = f"""
operation_store:                        # a store, to a table of level 1 more often than not
    call flush
    {chance(3, "store_anywhere")}
    {draw(len(L1))}
    mov rdi, rax
    call pool_address
    jmp store_address
store_anywhere:
    call pick_address
store_address:
    mov rbx, rax
    {draw(8)}
    lea r12, [rbx + rax*8]
    mov r15, rax
    {draw(len(FORMS))}
    mov rbp, rax
    {say("w{rbp:d} ")}
    mov rdi, rbx
    call put_address
    {say(".{r15:d} ")}
    mov edi, 1
    call make_entry
    mov r13, rax
    {choose("stored_bits")}
    mov r15, rax
    mov r14d, 1
    mov ecx, eax
    shl r14, cl
    mov rdi, r13
    call put_entry
    {say(" {r15:d}")}
    mov [rip + store_target], r12
    {guarded("store_over", "lea rcx, [rip + store_forms]", "call qword ptr [rcx + rbp*8]", "setz al",
             "movzx r13d, al", "mov rax, [rip + faulted]")}
    mov rbx, [rip + store_target]
    test rax, rax
    jnz store_fault
    {say(" {r13:d}")}
    jmp store_show
store_fault:
    {say(" ")}
    mov rdi, rbx
    call put_fault
store_show:
    and rbx, -16
    mov r12, rbx
    call put_word
    lea r12, [rbx + 8]
    call put_word
    ret

store_not_made:
    ret

{_ROUTINES}

.balign 8, 0
store_forms:
.quad {", ".join(f"store_{name}" for name in FORMS)}
"""
