"""What `mmufuzz` is built on: its random numbers, its frames, looking at entries, faults that are expected.

Routines return in rax and keep rbx, rbp and r12 to r15; every other register is lost.
"""
from __future__ import annotations

from itertools import count
from typing import Final

from guests import options, runtime
from guests.assembler import VIRT_BASE
from guests.fuzz import tables as t
from guests.macros import hypercall, load, say, text

_labels = count()


KERNEL_CS: Final = 0xE030
"""What a frame shows, and takes, for 64-bit code in the kernel (FLAT_KERNEL_CS with privilege level 0)."""
TOUCHED: Final = 0x60
"""Accessed and dirty."""


def draw(bound: int | str) -> str:
    """A random number below a bound, in rax."""
    return f"{load('rdi', bound)}\ncall pick"


def choose(table: str) -> str:
    """A random element of a table of `tables`, in rax."""
    return f"{draw(len(t.TABLES[table]))}\nlea rcx, [rip + {table}]\nmov rax, [rcx + rax*8]"


def chance(one_in: int, label: str) -> str:
    """Go to a label, once in so many times."""
    return f"{draw(one_in)}\ntest rax, rax\njz {label}"


def guarded(label: str, *code: str) -> str:
    """Code that may fault; after it, rax is 0, or 1 when it did. It may use rax, rcx, rdx, r12 to r15."""
    return "\n".join((
        f"lea rax, [rip + {label}]", "mov [rip + recover], rax", "mov [rip + recover_stack], rsp",
        "mov qword ptr [rip + faulted], 0", *code, f"{label}:", "mov qword ptr [rip + recover], 0",
        "mov rax, [rip + faulted]",
    ))


OPTIONS: Final = f"""{options.READER}
option_seed:
{text("seed=")}
option_ops:
{text("ops=")}
"""

RANDOM: Final = """
random:                                 # xorshift64
    mov rax, [rip + random_state]
    mov rcx, rax
    shl rcx, 13
    xor rax, rcx
    mov rcx, rax
    shr rcx, 7
    xor rax, rcx
    mov rcx, rax
    shl rcx, 17
    xor rax, rcx
    mov [rip + random_state], rax
    ret

pick:                                   # rdi = bound -> 0 .. bound - 1
    call random
    shr rax, 11
    xor edx, edx
    div rdi
    mov rax, rdx
    ret
"""

FRAMES: Final = f"""
frame:                                  # rdi = frame's number -> its machine frame
    lea rcx, [rip + frames]
    mov rax, [rcx + rdi*8]
    ret

frame_number:                           # rdi = machine frame -> its number, or -1
    lea rcx, [rip + frames]
    xor eax, eax
frame_next:
    cmp rdi, [rcx + rax*8]
    je frame_found
    inc eax
    cmp eax, {t.FRAMES}
    jb frame_next
    mov rax, -1
frame_found:
    ret

put_entry:                              # rdi = an entry: print it as frame:flags
    push rbx
    push r12
    mov r12, rdi
    mov rbx, rdi
    mov rcx, 0x000ffffffffff000
    and rbx, rcx
    jz put_flags
    mov rdi, rbx
    shr rdi, 12
    call frame_number
    test rax, rax
    js put_unknown
    {say("{rax:d}:")}
    jmp put_flags
put_unknown:
    {say("?:")}
put_flags:
    mov rcx, 0x000ffffffffff000
    not rcx
    and r12, rcx
    {say("{r12:x}")}
    pop r12
    pop rbx
    ret

make_entry:                             # rdi = level of the table it is for -> an entry
    push rbx
    mov rbx, rdi
    {chance(12, "entry_linear")}
    {chance(4, "entry_any")}
    lea rcx, [rip + below]
    shl rbx, 4
    add rbx, rcx
    {draw("qword ptr [rbx - 8]")}
    add rax, [rbx - 16]
    jmp entry_frame
entry_any:
    {choose("mappable")}
entry_frame:
    mov rdi, rax
    call frame
    shl rax, 12
    mov rbx, rax
    {choose("entry_flags")}
    or rbx, rax
    {chance(5, "entry_odd")}
    mov rax, rbx
    pop rbx
    ret
entry_linear:                           # a table of the same level, read-only more often than not
    lea rcx, [rip + below]
    shl rbx, 4
    add rbx, rcx
    {draw("qword ptr [rbx + 8]")}
    add rax, [rbx]
    mov rdi, rax
    call frame
    shl rax, 12
    mov rbx, rax
    or rbx, 0x65
    {chance(5, "entry_linear_writable")}
    mov rax, rbx
    pop rbx
    ret
entry_linear_writable:
    lea rax, [rbx + 2]
    pop rbx
    ret
entry_odd:
    {choose("entry_bits")}
    btc rbx, rax
    mov rax, rbx
    pop rbx
    ret

level_of:                               # rdi = frame's number -> the level it serves as
    lea rcx, [rip + levels]
    movzx eax, byte ptr [rcx + rdi]
    ret

pick_table:                             # -> number of a frame to use as a table
    {chance(8, "table_boot")}
    {chance(6, "table_any")}
    {draw(15)}
    ret
table_boot:
    {draw(4)}
    add eax, {t.ROOT}
    ret
table_any:
    {choose("mappable")}
    cmp eax, {t.START_INFO}
    je table_any
    ret

pick_slot:                              # rdi = frame's number -> a slot that is safe to change
    cmp edi, {t.BOOT_L1}
    je slot_pool
    cmp edi, {t.BOOT_L2}
    je slot_empty
    cmp edi, {t.BOOT_L3}
    je slot_empty
    call level_of
    cmp eax, 4
    je slot_root
    {chance(12, "slot_far")}
    {draw(8)}
    ret
slot_far:
    {draw(511)}
    ret
slot_root:
    {choose("root_slots")}
    ret
slot_empty:
    {draw(4)}
    add eax, {t.EMPTY_SLOT}
    ret
slot_pool:
    {draw(t.POOL)}
    lea rcx, [rip + pool]
    mov rdx, {VIRT_BASE}
    sub rcx, rdx
    shr rcx, 12
    add rax, rcx
    ret

pool_address:                           # rdi = page of the pool -> its address
    shl rdi, 12
    lea rax, [rip + pool]
    add rax, rdi
    ret

pick_address:                           # -> an address in the pool or in the tests' own tables
    push rbx
    {draw(2)}
    test eax, eax
    jz address_test
    {draw(t.POOL)}
    mov rdi, rax
    call pool_address
    pop rbx
    ret
address_test:
    {draw(2)}
    mov rbx, rax
    shl rbx, 9
    {draw(3)}
    or rbx, rax
    shl rbx, 9
    {draw(8)}
    or rbx, rax
    shl rbx, 12
    mov rax, {t.TEST_BASE}
    or rax, rbx
    pop rbx
    ret

put_address:                            # rdi = address from pick_address: print it
    mov rax, rdi
    lea rcx, [rip + pool]
    sub rax, rcx
    jb address_low
    {say("p")}
    shr rax, 12
    {say("{rax:d}")}
    ret
address_low:
    mov rax, rdi
    mov rcx, {t.TEST_BASE}
    sub rax, rcx
    shr rax, 12
    {say("t{rax:x}")}
    ret
"""

LOOKING: Final = f"""
trap_expected:                          # the trap hook: remember what happened and go on where `recover` says
    cmp qword ptr [rip + recover], 0
    jne trap_known
    jmp trap_unexpected
trap_known:
    mov rax, [rdi + {runtime.frame("vector")}]
    mov [rip + fault_vector], rax
    mov rax, [rdi + {runtime.frame("error")}]
    mov [rip + fault_error], rax
    lea rax, [rip + shared_page]
    add rax, [rip + current_info]
    mov rax, [rax + vcpu_info.arch.cr2]
    mov [rip + fault_address], rax
    mov qword ptr [rip + faulted], 1
    mov rax, [rip + recover]
    mov [rdi + {runtime.frame("rip")}], rax
    mov rax, [rip + recover_stack]
    mov [rdi + {runtime.frame("rsp")}], rax
    and qword ptr [rdi + {runtime.frame("rflags")}], -0x501     # neither TF nor DF
    mov qword ptr [rdi + {runtime.frame("cs")}], {KERNEL_CS}        # when it came from user mode, too
    mov qword ptr [rdi + {runtime.frame("ss")}], FLAT_KERNEL_SS
    ret

put_fault:                              # rdi = address meant: print the fault, a page fault with the distance
    {say("!{qword ptr [rip + fault_vector]:d}")}
    mov rax, [rip + fault_error]
    cmp rax, -1
    je fault_done
    {say(".{rax:x}")}
    cmp qword ptr [rip + fault_vector], 14
    jne fault_done
    mov rax, [rip + fault_address]
    sub rax, rdi
    {say("@{rax:d}")}
fault_done:
    ret

peek:  # rdi = frame's number, rsi = slot -> rax = the entry, rdx = 0 or an error
    push rbx
    mov rbx, rsi
    call frame
    shl rax, 12
    or rax, 0x21
    mov rsi, rax
    {hypercall("update_va_mapping", "&window", "rsi", "UVMF_INVLPG")}
    mov rdx, rax
    test rax, rax
    jnz peeked
    lea rcx, [rip + window]
    mov rbx, [rcx + rbx*8]
    {hypercall("update_va_mapping", "&window", 0, "UVMF_INVLPG")}
    xor edx, edx
    mov rax, rbx
peeked:
    pop rbx
    ret

put_slot:  # rdi = frame's number, rsi = slot, rdx = flags not to show: print the entry
    push rbx
    mov rbx, rdx
    call peek
    test rdx, rdx
    jnz slot_hidden
    not rbx
    and rax, rbx
    mov rdi, rax
    {say(" =")}
    call put_entry
    pop rbx
    ret
slot_hidden:
    {say(" =!{rdx:d}")}
    pop rbx
    ret

flush:                                  # forget every translation
    mov qword ptr [rip + plain_op], MMUEXT_TLB_FLUSH_LOCAL
    {hypercall("mmuext_op", "&plain_op", 1, 0, "DOMID_SELF")}
    ret
"""

STATE: Final = """
.balign 8, 0
random_state: .quad 0
operations_left: .quad 0
recover: .quad 0
recover_stack: .quad 0
faulted: .quad 0
fault_vector: .quad 0
fault_error: .quad 0
fault_address: .quad 0
plain_op: .zero 24
done_count: .quad 0
store_target: .quad 0
everyone: .quad 3
current_info: .quad 0                   # where in the shared page the running vCPU's vcpu_info lies
"""

DATA: Final = (
    STATE, f"levels:\n.byte {', '.join(map(str, t.LEVELS))}",
    t.quads("below", (cell for level in t.BELOW
                      for cell in (t.BELOW[level].start, len(t.BELOW[level])))),
    *(t.quads(label, values) for label, values in t.TABLES.items()),
    t.quads("frames", [t.FIXED.get(frame, 0) for frame in range(t.FRAMES)]),
)
"""`below` holds where the frames an entry should name begin and how many they are, by level."""

BSS: Final = f"""
.balign 4096, 0
pool: .zero {t.POOL * 4096}
window: .zero 4096
"""
