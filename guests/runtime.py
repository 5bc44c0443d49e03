"""What every guest is linked with: entry, console, printing, traps, events. Assembly, one constant a noun.

Routines keep every register unless they say otherwise and need no stack alignment. Arguments of the `put_*`
routines lie on the stack and are removed by the routine.
"""
from __future__ import annotations

from typing import Final

from guests.assembler import VIRT_BASE

CALLER_SAVED: Final = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
FRAME: Final = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
                "r14", "r15", "vector", "error", "rip", "cs", "rflags", "rsp", "ss")
"""A trap frame's 64-bit words, from the address a hook gets in rdi. `error` is -1 where there is none."""

WITH_ERROR: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
"""Vectors with an error code (Intel SDM volume 3, table 6-1)."""
ENTRY_SIZE: Final = 16
"""Bytes from one vector's entry to the next."""


def frame(field: str) -> int:
    """The offset of a word of the trap frame."""
    return FRAME.index(field) * 8


def save(registers: tuple[str, ...] = CALLER_SAVED) -> str:
    """Push the registers."""
    return "\n".join(f"push {name}" for name in registers)


def restore(registers: tuple[str, ...] = CALLER_SAVED) -> str:
    """Pop what `save` pushed."""
    return "\n".join(f"pop {name}" for name in reversed(registers))


BOOT: Final = """
guest_entry:                            # rsi = start_info
    cld
    lea rsp, [rip + boot_stack_top]
    mov [rip + start_info_address], rsi
    call console_init
    call guest_main
power_off:
    mov ebx, SHUTDOWN_poweroff
    jmp shut_down
crash:
    mov ebx, SHUTDOWN_crash
shut_down:                              # ebx = reason; never returns
    call console_drain
    mov [rip + shutdown_reason], ebx
    mov edi, SCHEDOP_shutdown
    lea rsi, [rip + shutdown_reason]
    mov eax, __HYPERVISOR_sched_op
    syscall
    jmp shut_down
"""

BOOT_BSS: Final = """
boot_stack: .zero 16384
boot_stack_top:
start_info_address: .quad 0
shutdown_reason: .quad 0
"""

CONSOLE: Final = f"""
console_init:                           # dom0 writes through console_io, everybody else into the console ring
{save()}
    mov rdi, [rip + start_info_address]
    test dword ptr [rdi + start_info.flags], SIF_INITDOMAIN
    jnz console_init_done
    mov eax, [rdi + start_info.console.evtchn]
    mov [rip + console_port], eax
    mov rax, [rdi + start_info.console.mfn]
    mov rcx, MACH2PHYS_VIRT_START
    mov rax, [rcx + rax*8]
    shl rax, 12
    mov rcx, {VIRT_BASE}
    add rax, rcx
    mov [rip + console_ring], rax
console_init_done:
{restore()}
    ret

console_flush:                          # hand the line buffer over
{save()}
    mov edx, [rip + line_length]
    mov dword ptr [rip + line_length], 0
    lea rsi, [rip + line_buffer]
    mov r8, [rip + console_ring]
    test r8, r8
    jnz ring_write
    mov edi, CONSOLEIO_write
    xchg rsi, rdx
    mov eax, __HYPERVISOR_console_io
    syscall
    jmp console_flush_done
ring_write:
    mov r9d, [r8 + xencons_interface.out_prod]
ring_byte:
    test edx, edx
    jz ring_notify
ring_room:
    mov ecx, r9d
    sub ecx, [r8 + xencons_interface.out_cons]
    cmp ecx, 2048
    jb ring_store
    call ring_kick
    call yield
    jmp ring_room
ring_store:
    mov ecx, r9d
    and ecx, 2047
    lodsb
    mov [r8 + rcx + xencons_interface.out], al
    inc r9d
    mov [r8 + xencons_interface.out_prod], r9d
    dec edx
    jmp ring_byte
ring_notify:
    call ring_kick
console_flush_done:
{restore()}
    ret

ring_kick:                              # tell the other end
{save()}
    mov edi, EVTCHNOP_send
    lea rsi, [rip + console_port]
    mov eax, __HYPERVISOR_event_channel_op
    syscall
{restore()}
    ret

console_drain:                          # wait until the other end took everything
{save()}
    mov r8, [rip + console_ring]
    test r8, r8
    jz console_drained
console_drain_wait:
    mov eax, [r8 + xencons_interface.out_cons]
    cmp eax, [r8 + xencons_interface.out_prod]
    je console_drained
    call yield
    jmp console_drain_wait
console_drained:
{restore()}
    ret

yield:
{save()}
    mov edi, SCHEDOP_yield
    xor esi, esi
    mov eax, __HYPERVISOR_sched_op
    syscall
{restore()}
    ret
"""

CONSOLE_DATA: Final = """
console_ring: .quad 0                   # 0: dom0
console_port: .quad 0
line_length: .quad 0
line_buffer: .zero 256
"""

PRINT: Final = """
put_char:                               # al; a newline ends the line and flushes it
    push rcx
    push rdi
    mov ecx, [rip + line_length]
    lea rdi, [rip + line_buffer]
    cmp ecx, 255
    jae put_char_last
    mov [rdi + rcx], al
    inc ecx
    mov [rip + line_length], ecx
put_char_last:
    cmp al, 10
    jne put_char_done
    mov [rdi + rcx - 1], al
    call console_flush
put_char_done:
    pop rdi
    pop rcx
    ret

put_literal:                            # the text follows the call, ended by a zero byte
    xchg rsi, [rsp]
    push rax
    call put_text
    pop rax
    xchg rsi, [rsp]
    ret

put_text:                               # rsi -> text; leaves rsi behind its zero byte, uses rax
    lodsb
    test al, al
    jz put_text_done
    call put_char
    jmp put_text
put_text_done:
    ret

put_string:                             # (address of a text)
    push rax
    push rsi
    mov rsi, [rsp + 24]
    call put_text
    pop rsi
    pop rax
    ret 8

put_decimal:                            # (signed value)
    push rax
    push rcx
    push rdx
    push rbx
    mov rbx, [rsp + 40]
    test rbx, rbx
    jns put_decimal_digits
    mov al, 45
    call put_char
    neg rbx
put_decimal_digits:
    mov rax, rbx
    mov ebx, 10
    xor ecx, ecx
put_decimal_divide:
    xor edx, edx
    div rbx
    push rdx
    inc ecx
    test rax, rax
    jnz put_decimal_divide
put_decimal_digit:
    pop rax
    add al, 48
    call put_char
    dec ecx
    jnz put_decimal_digit
    pop rbx
    pop rdx
    pop rcx
    pop rax
    ret 8

put_hex:                                # (value), without leading zeros
    push rax
    push rcx
    push rdx
    mov rdx, [rsp + 32]
    mov al, 48
    call put_char
    mov al, 120
    call put_char
    mov ecx, 60
put_hex_skip:
    mov rax, rdx
    shr rax, cl
    jnz put_hex_digit
    sub ecx, 4
    ja put_hex_skip
put_hex_digit:
    mov rax, rdx
    shr rax, cl
    and eax, 15
    cmp al, 10
    jb put_hex_char
    add al, 39
put_hex_char:
    add al, 48
    call put_char
    sub ecx, 4
    jns put_hex_digit
    pop rdx
    pop rcx
    pop rax
    ret 8
"""

SHARED: Final = f"""
map_shared:                             # map shared_info at shared_page
{save()}
    mov rax, [rip + start_info_address]
    mov rsi, [rax + start_info.shared_info]
    or rsi, 0x63                        # present, writable, accessed, dirty
    lea rdi, [rip + shared_page]
    mov edx, UVMF_INVLPG
    mov eax, __HYPERVISOR_update_va_mapping
    syscall
    test rax, rax
    jnz crash
    lea rdi, [rip + shared_page]        # mask the console's and the store's ports: nobody here waits for them
    mov eax, [rip + console_port]
    lock bts qword ptr [rdi + shared_info.evtchn_mask], rax
    mov rax, [rip + start_info_address]
    test dword ptr [rax + start_info.flags], SIF_INITDOMAIN
    jnz map_shared_done
    mov eax, [rax + start_info.store_evtchn]
    lock bts qword ptr [rdi + shared_info.evtchn_mask], rax
    mov qword ptr [rdi + vcpu_info.evtchn_pending_sel], 0
    mov byte ptr [rdi + vcpu_info.evtchn_upcall_pending], 0
map_shared_done:
{restore()}
    ret
"""

PAGES: Final = f"""
machine_frame:                          # rdi = a page's address in the image -> rax = its machine frame
    push rsi
    mov rax, rdi
    mov rsi, {VIRT_BASE}
    sub rax, rsi
    shr rax, 12
    mov rsi, [rip + start_info_address]
    mov rsi, [rsi + start_info.mfn_list]
    mov rax, [rsi + rax*8]
    pop rsi
    ret

remap:                                  # rdi = page of the image, rsi = its new flags; rax = result
    push rdi
    push rsi
    push rdx
    push rcx
    push r11
    call machine_frame
    shl rax, 12
    or rsi, rax
    mov edx, UVMF_INVLPG
    mov eax, __HYPERVISOR_update_va_mapping
    syscall
    pop r11
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    ret
"""

SHARED_BSS: Final = ".balign 4096, 0\nshared_page: .zero 4096"


def trap_entries() -> str:
    """The first instructions of every vector's handler: a native trap frame with vector and error code."""
    stubs = []
    for vector in range(256):
        error = "" if vector in WITH_ERROR else "push -1\n"
        stubs.append(f".balign 16, 0xcc\npop rcx\npop r11\n{error}push {vector}\njmp trap_common")
    return ".balign 16, 0xcc\ntrap_entries:\n" + "\n".join(stubs)


def trap_table(flags: dict[int, int]) -> str:
    """The table for set_trap_table: every vector, with its `flags` (privilege level, 4: mask events) or 0."""
    rows = [f".byte {vector}, {flags.get(vector, 0)}\n.short FLAT_KERNEL_CS\n.long 0\n"
            f".quad trap_entries + {vector * ENTRY_SIZE}" for vector in range(256)]
    return "\n".join(("trap_table:", *rows, ".quad 0, 0"))


FRAMES: Final = f"""
trap_common:                            # the frame is complete: see FRAME
{save(FRAME[14::-1])}
    cld
    mov rdi, rsp
    call qword ptr [rip + trap_hook]
    jmp frame_return

event_upcall:
    pop rcx
    pop r11
    push -1
    push -1
{save(FRAME[14::-1])}
    cld
    call event_scan

frame_return:                           # rsp -> frame
{restore(FRAME[14::-1])}
    add rsp, 16
    push 0                              # not in a system call: rcx and r11 come from the frame
    push rcx
    push r11
    push rax
    mov eax, __HYPERVISOR_iret
    syscall
"""

VCPU_AREA: Final = ("info", "ports", "number", "taken")
"""A vCPU's own words, where gs points: its vcpu_info, the bitmap of ports it takes, two for the guest."""

EVENTS: Final = """
event_scan:                             # call event_hook (rdi = port) for what is pending on this vCPU
    mov rbx, qword ptr gs:[0]
    mov r15, qword ptr gs:[8]
    mov byte ptr [rbx + vcpu_info.evtchn_upcall_pending], 0
    xor eax, eax
    xchg rax, [rbx + vcpu_info.evtchn_pending_sel]
    mov r12, rax
    lea rbx, [rip + shared_page]
event_word:
    test r12, r12
    jz event_scanned
    bsf r13, r12
    btr r12, r13
    mov r14, [rbx + r13*8 + shared_info.evtchn_mask]
    not r14
    and r14, [rbx + r13*8 + shared_info.evtchn_pending]
    and r14, [r15 + r13*8]
event_bit:
    test r14, r14
    jz event_word
    bsf rbp, r14
    btr r14, rbp
    mov rdi, r13
    shl rdi, 6
    add rdi, rbp
    lock btr qword ptr [rbx + shared_info.evtchn_pending], rdi
    call qword ptr [rip + event_hook]
    jmp event_bit
event_scanned:
    ret
"""

HOOKS: Final = """
vcpu_zero: .quad shared_page, every_port, 0, 0  # where gs points, see VCPU_AREA
every_port: .fill 128, 4, 0xffffffff
trap_hook: .quad trap_unexpected
event_hook: .quad crash
"""
