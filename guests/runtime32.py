"""What every 32-bit guest is linked with, as `runtime` is for 64-bit ones: the same nouns, in ring 1.

A PAE kernel runs in ring 1 and calls by `int 0x82` with the number in eax and arguments in ebx, ecx, edx,
esi, edi, ebp (arch-x86/xen-x86_32.h). Xen pushes hardware's 32-bit exception frame, the upcall mask from
before in bits 16 to 23 of the CS word, and takes it back by the iret hypercall with eax below it. Data
segments stay what the interrupted code had, so handlers load their own.
"""
from __future__ import annotations

from typing import Final

from guests.assembler import NARROW_BASE
from guests.runtime import ENTRY_SIZE, WITH_ERROR

FRAME: Final = ("gs", "fs", "es", "ds", "edi", "esi", "ebp", "pushed_esp", "ebx", "edx", "ecx", "eax",
                "vector", "error", "eip", "cs", "eflags", "esp", "ss")
"""A trap frame's 32-bit words, from the address a hook gets in edi. `esp` and `ss` are there only when the
trap came from an outer ring; `error` is -1 where there is none.
"""
SEGMENTS: Final = ("ds", "es", "fs", "gs")


def frame(field: str) -> int:
    """The offset of a word of the trap frame."""
    return FRAME.index(field) * 4


_SAVE: Final = "pushad\n" + "\n".join(f"xor eax, eax\nmov ax, {name}\npush eax" for name in SEGMENTS) + """
    mov eax, FLAT_KERNEL_DS
    mov ds, ax
    mov es, ax
    cld
"""
_RESTORE: Final = "\n".join(f"pop eax\nmov {name}, ax" for name in reversed(SEGMENTS)) + "\npopad"

BOOT: Final = """
guest_entry:                            # esi = start_info
    cld
    lea esp, [boot_stack_top]
    mov [start_info_address], esi
    call console_init
    call guest_main
power_off:
    mov ebp, SHUTDOWN_poweroff
    jmp shut_down
crash:
    mov ebp, SHUTDOWN_crash
shut_down:                              # ebp = reason; never returns
    call console_drain
    mov [shutdown_reason], ebp
    mov ebx, SCHEDOP_shutdown
    lea ecx, [shutdown_reason]
    mov eax, __HYPERVISOR_sched_op
    int 0x82
    jmp shut_down
"""

BOOT_BSS: Final = """
boot_stack: .zero 16384
boot_stack_top:
start_info_address: .long 0
shutdown_reason: .long 0
"""

CONSOLE: Final = f"""
console_init:                           # dom0 writes through console_io, everybody else into the console ring
    pushad
    mov edi, [start_info_address]
    test dword ptr [edi + start_info.flags], SIF_INITDOMAIN
    jnz console_init_done
    mov eax, [edi + start_info.console.evtchn]
    mov [console_port], eax
    mov eax, [edi + start_info.console.mfn]
    mov eax, [eax*4 + MACH2PHYS_VIRT_START]
    shl eax, 12
    add eax, {NARROW_BASE}
    mov [console_ring], eax
console_init_done:
    popad
    ret

console_flush:                          # hand the line buffer over
    pushad
    mov ecx, [line_length]
    mov dword ptr [line_length], 0
    lea edx, [line_buffer]
    mov ebp, [console_ring]
    test ebp, ebp
    jnz ring_write
    mov ebx, CONSOLEIO_write
    mov eax, __HYPERVISOR_console_io
    int 0x82
    popad
    ret
ring_write:
    mov esi, edx
    mov edx, ecx
    mov edi, [ebp + xencons_interface.out_prod]
ring_byte:
    test edx, edx
    jz ring_notify
ring_room:
    mov ecx, edi
    sub ecx, [ebp + xencons_interface.out_cons]
    cmp ecx, 2048
    jb ring_store
    call ring_kick
    call yield
    jmp ring_room
ring_store:
    mov ecx, edi
    and ecx, 2047
    lodsb
    mov [ebp + ecx + xencons_interface.out], al
    inc edi
    mov [ebp + xencons_interface.out_prod], edi
    dec edx
    jmp ring_byte
ring_notify:
    call ring_kick
    popad
    ret

ring_kick:                              # tell the other end
    pushad
    mov ebx, EVTCHNOP_send
    lea ecx, [console_port]
    mov eax, __HYPERVISOR_event_channel_op
    int 0x82
    popad
    ret

console_drain:                          # wait until the other end took everything
    pushad
    mov ebp, [console_ring]
    test ebp, ebp
    jz console_drained
console_drain_wait:
    mov eax, [ebp + xencons_interface.out_cons]
    cmp eax, [ebp + xencons_interface.out_prod]
    je console_drained
    call yield
    jmp console_drain_wait
console_drained:
    popad
    ret

yield:
    pushad
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    mov eax, __HYPERVISOR_sched_op
    int 0x82
    popad
    ret
"""

CONSOLE_DATA: Final = """
console_ring: .long 0                   # 0: dom0
console_port: .long 0
line_length: .long 0
line_buffer: .zero 256
"""

PRINT: Final = """
put_char:                               # al; a newline ends the line and flushes it
    push ecx
    mov ecx, [line_length]
    cmp ecx, 255
    jae put_char_last
    mov [ecx + line_buffer], al
    inc ecx
    mov [line_length], ecx
put_char_last:
    cmp al, 10
    jne put_char_done
    mov [ecx + line_buffer - 1], al
    call console_flush
put_char_done:
    pop ecx
    ret

put_literal:                            # the text follows the call, ended by a zero byte
    xchg [esp], esi
    push eax
    call put_text
    pop eax
    xchg [esp], esi
    ret

put_text:                               # esi -> text; leaves esi behind its zero byte, uses eax
    lodsb
    test al, al
    jz put_text_done
    call put_char
    jmp put_text
put_text_done:
    ret

put_string:                             # (address of a text)
    push eax
    push esi
    mov esi, [esp + 12]
    call put_text
    pop esi
    pop eax
    ret 4

put_decimal:                            # (signed value)
    push eax
    push ecx
    push edx
    push ebx
    mov eax, [esp + 20]
    test eax, eax
    jns put_decimal_digits
    push eax
    mov al, 45
    call put_char
    pop eax
    neg eax
put_decimal_digits:
    mov ebx, 10
    xor ecx, ecx
put_decimal_divide:
    xor edx, edx
    div ebx
    push edx
    inc ecx
    test eax, eax
    jnz put_decimal_divide
put_decimal_digit:
    pop eax
    add al, 48
    call put_char
    dec ecx
    jnz put_decimal_digit
    pop ebx
    pop edx
    pop ecx
    pop eax
    ret 4

put_hex:                                # (value), without leading zeros
    push eax
    push ecx
    push edx
    mov edx, [esp + 16]
    mov al, 48
    call put_char
    mov al, 120
    call put_char
    mov ecx, 28
put_hex_skip:
    mov eax, edx
    shr eax, cl
    jnz put_hex_digit
    sub ecx, 4
    ja put_hex_skip
put_hex_digit:
    mov eax, edx
    shr eax, cl
    and eax, 15
    cmp al, 10
    jb put_hex_char
    add al, 39
put_hex_char:
    add al, 48
    call put_char
    sub ecx, 4
    jns put_hex_digit
    pop edx
    pop ecx
    pop eax
    ret 4
"""

SHARED: Final = """
map_shared:                             # map shared_info at shared_page
    pushad
    mov eax, [start_info_address]
    mov ecx, [eax + start_info.shared_info]
    or ecx, 0x63                        # present, writable, accessed, dirty
    lea ebx, [shared_page]
    xor edx, edx
    mov esi, UVMF_INVLPG
    mov eax, __HYPERVISOR_update_va_mapping
    int 0x82
    test eax, eax
    jnz crash
    mov eax, [console_port]             # mask the console's and the store's ports: nobody here waits for them
    lock bts dword ptr [shared_page + shared_info.evtchn_mask], eax
    mov eax, [start_info_address]
    test dword ptr [eax + start_info.flags], SIF_INITDOMAIN
    jnz map_shared_done
    mov eax, [eax + start_info.store_evtchn]
    lock bts dword ptr [shared_page + shared_info.evtchn_mask], eax
    mov dword ptr [shared_page + vcpu_info.evtchn_pending_sel], 0
    mov byte ptr [shared_page + vcpu_info.evtchn_upcall_pending], 0
map_shared_done:
    popad
    ret
"""
SHARED_BSS: Final = ".balign 4096, 0\nshared_page: .zero 4096"

PAGES: Final = f"""
machine_frame:                          # edi = a page's address in the image -> eax = its machine frame
    push esi
    mov eax, edi
    sub eax, {NARROW_BASE}
    shr eax, 12
    mov esi, [start_info_address]
    mov esi, [esi + start_info.mfn_list]
    mov eax, [esi + eax*4]
    pop esi
    ret

remap:                                  # edi = page of the image, esi = its new flags, eax = the upper half's
    push ebx                            # -> eax = result
    push ecx
    push edx
    push esi
    push eax
    call machine_frame
    mov ecx, eax
    shl ecx, 12
    or ecx, esi
    shr eax, 20
    mov edx, eax
    pop eax
    or edx, eax
    mov ebx, edi
    mov esi, UVMF_INVLPG
    mov eax, __HYPERVISOR_update_va_mapping
    int 0x82
    pop esi
    pop edx
    pop ecx
    pop ebx
    ret
"""


def trap_entries() -> str:
    """The first instructions of every vector's handler: the frame gets vector and error code."""
    stubs = []
    for vector in range(256):
        error = "" if vector in WITH_ERROR else "push -1\n"
        stubs.append(f".balign 16, 0xcc\n{error}push {vector}\njmp trap_common")
    return ".balign 16, 0xcc\ntrap_entries:\n" + "\n".join(stubs)


def trap_table(flags: dict[int, int]) -> str:
    """The table for set_trap_table: every vector, with its `flags` (privilege level, 4: mask events) or 0."""
    rows = [f".byte {vector}, {flags.get(vector, 0)}\n.short FLAT_KERNEL_CS\n"
            f".long trap_entries + {vector * ENTRY_SIZE}" for vector in range(256)]
    return "\n".join(("trap_table:", *rows, ".long 0, 0"))


FRAMES: Final = f"""
trap_common:                            # the frame is complete: see FRAME
    {_SAVE}
    mov edi, esp
    call dword ptr [trap_hook]
    jmp frame_return

event_upcall:
    push -1
    push -1
    {_SAVE}
    call event_scan

frame_return:                           # esp -> frame
    {_RESTORE}
    add esp, 8
    push eax
    mov eax, __HYPERVISOR_iret
    int 0x82
"""

VCPU_AREA: Final = ("info", "ports", "number", "taken")
"""A vCPU's own words, where `area_hook` puts ebx: its vcpu_info, the bitmap of ports it takes, two more."""

EVENTS: Final = """
event_scan:                             # call event_hook (edi = port) for what is pending on this vCPU
    call dword ptr [area_hook]
    mov edx, [ebx]
    mov ebp, [ebx + 4]
    mov byte ptr [edx + vcpu_info.evtchn_upcall_pending], 0
    xor eax, eax
    xchg [edx + vcpu_info.evtchn_pending_sel], eax
    mov edx, eax
event_word:
    test edx, edx
    jz event_scanned
    bsf ecx, edx
    btr edx, ecx
    mov esi, [ecx*4 + shared_page + shared_info.evtchn_mask]
    not esi
    and esi, [ecx*4 + shared_page + shared_info.evtchn_pending]
    and esi, [ebp + ecx*4]
event_bit:
    test esi, esi
    jz event_word
    bsf eax, esi
    btr esi, eax
    mov edi, ecx
    shl edi, 5
    add edi, eax
    lock btr dword ptr [shared_page + shared_info.evtchn_pending], edi
    call dword ptr [event_hook]
    jmp event_bit
event_scanned:
    ret

area_zero:
    lea ebx, [vcpu_zero]
    ret
"""

HOOKS: Final = """
vcpu_zero: .long shared_page, every_port, 0, 0  # vCPU 0's area, see VCPU_AREA
every_port: .fill 32, 4, 0xffffffff
trap_hook: .long trap_unexpected
event_hook: .long crash
area_hook: .long area_zero
"""
