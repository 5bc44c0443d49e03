"""smp32: a 32-bit PAE guest brings up every vCPU; they count, interrupt each other, go down and come back.

What Xen does, and why it is expected (nobody recorded it, as Debian's Xen has no 32-bit PV):

- VCPUOP_initialise takes the 2,800-byte context of 32-bit guests: selectors, callbacks as selector and
  address, CR3 folded (xen_pfn_to_cr3), a list of 32-bit GDT frames. Return codes are those of 64-bit guests.
- A selector of the context is loaded when the vCPU first runs, from its own GDT: gs leads to its own area.
- All vCPUs run on one root, so its last L2 with Xen's entries has one user.

The last number of each line is what all vCPUs did together, so it does not depend on how they were scheduled.
"""
from __future__ import annotations

from typing import Final

from guests import runtime32
from guests.macros32 import get, hypercall, kernel, line, put
from guests.probes import READ_ONLY

MAX_VCPUS: Final = 8
TURNS: Final = 1000
STACK: Final = 4096
VCPU_INFO_SHIFT: Final = 6
ABSENT: Final = 77
AREA: Final = 16
_PORTS, _NUMBER, _TAKEN = (runtime32.VCPU_AREA.index(word) * 4 for word in ("ports", "number", "taken"))
BITMAP: Final = 128
AREA_SELECTOR: Final = 1 << 3 | 1
PAGE: Final = 4096

_SECOND: Final = f"""
second_entry:                           # a vCPU that came up: gs -> its area, esp -> its stack
    mov esi, dword ptr gs:[{_NUMBER}]
    call take_turns
    lock inc dword ptr [finished]
    {hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", f"dword ptr gs:[{_NUMBER}]", 0)}
second_wait:                            # wait for its event, with the upcall; then answer vCPU 0
    {hypercall("sched_op", "SCHEDOP_block", 0)}
    cmp dword ptr gs:[{_TAKEN}], 0
    je second_wait
    call answer
    {hypercall("vcpu_op", "VCPUOP_down", f"dword ptr gs:[{_NUMBER}]", 0)}
    lock inc dword ptr [returned]           # brought up again: it goes on here
    {hypercall("vcpu_op", "VCPUOP_down", f"dword ptr gs:[{_NUMBER}]", 0)}
    jmp crash

answer:                                 # send the event vCPU 0 waits for
    mov eax, dword ptr gs:[{_NUMBER}]
    lea ecx, [eax*4 + answers]
    {hypercall("event_channel_op", "EVTCHNOP_send", "ecx")}
    ret

take_turns:                             # add to the counter, {TURNS:,} times, under the lock
    mov ecx, {TURNS}
take_lock:
    mov eax, 1
    xchg eax, [spinlock]
    test eax, eax
    jz locked
    pause
    jmp take_lock
locked:
    mov eax, [counter]
    inc eax
    mov [counter], eax
    mov dword ptr [spinlock], 0
    dec ecx
    jnz take_lock
    ret

came_event:                             # an event: the vCPU it came to counts it
    push eax
    push ebx
    call dword ptr [area_hook]
    inc dword ptr [ebx + {_TAKEN}]
    pop ebx
    pop eax
    ret

area_of_gs:                             # ebx = this vCPU's area: vCPU 0 has no segment of its own
    xor ebx, ebx
    mov bx, gs
    cmp ebx, {AREA_SELECTOR}
    jne area_zero
    mov ebx, dword ptr gs:[{_NUMBER}]
    imul ebx, ebx, {AREA}
    add ebx, areas
    ret
"""

_COUNT: Final = f"""
    xor ebp, ebp
find_vcpus:
    {hypercall("vcpu_op", "VCPUOP_is_up", "ebp", 0)}
    test eax, eax
    js found_vcpus
    inc ebp
    cmp ebp, {MAX_VCPUS}
    jb find_vcpus
found_vcpus:
    mov [vcpus], ebp
    {line("vcpus: {ebp:d}, then {eax:d}")}
"""


def operation(title: str, command: str, vcpu: str | int, argument: str | int = 0) -> str:
    """A vCPU operation and its result."""
    return hypercall("vcpu_op", command, vcpu, argument) + "\n" + line("vcpu {ebp:d}: " + title + " {eax:d}")


def each(label: str, body: str) -> str:
    """Do `body` for every vCPU but the first; ebp is its number."""
    head = f"mov ebp, 1\n{label}:\ncmp ebp, [vcpus]\njae {label}_done"
    return f"{head}\n{body}\ninc ebp\njmp {label}\n{label}_done:"


def runstate(title: str) -> str:
    """Print the run state of vCPU ebp."""
    return hypercall("vcpu_op", "VCPUOP_get_runstate_info", "ebp", "&runstate") + \
        "\n" + line("vcpu {ebp:d}: " + title + " {dword ptr [runstate]:d}")


def wait_for(title: str, label: str, counter: str) -> str:
    """Yield until every other vCPU has counted."""
    return _wait(label, counter) + "\n" + line(title + ": {dword ptr [" + counter + "]:d}")


def _wait(label: str, counter: str) -> str:
    return f"mov ebx, [vcpus]\ndec ebx\n{label}:\ncall yield\ncmp [{counter}], ebx\njb {label}"


def wait_down(label: str) -> str:
    """Yield until vCPU ebp is down."""
    return f"{label}:\ncall yield\n" + hypercall("vcpu_op", "VCPUOP_is_up", "ebp", 0) + \
        f"\ntest eax, eax\njnz {label}"


def bind(vcpu: str, table: str) -> str:
    """Bind an interrupt to a vCPU and keep its port at table[ebp]; ebx = result."""
    return "\n".join((
        put("argument + evtchn_bind_ipi.vcpu", vcpu),
        hypercall("event_channel_op", "EVTCHNOP_bind_ipi", "&argument"), "mov esi, eax",
        get("argument + evtchn_bind_ipi.port"), f"mov [ebp*4 + {table}], eax",
        f"imul edx, {vcpu}, {BITMAP}\nbts [edx + bitmaps], eax" if vcpu != "0" else "bts [bitmaps], eax",
    ))


_FIRST_FRAME: Final = """
    mov edi, [start_info_address]
    mov edi, [edi + start_info.pt_base]
    call machine_frame
    mov ecx, eax                            # xen_pfn_to_cr3
    shl eax, 12
    shr ecx, 20
    or eax, ecx
    mov [context + vcpu_guest_context.ctrlreg + 12], eax
"""

_CONTEXT: Final = f"""
    mov eax, ebp                            # its area: vcpu_info, bitmap, number
    shl eax, {VCPU_INFO_SHIFT}
    add eax, shared_page
    imul ebx, ebp, {AREA}
    add ebx, areas
    mov [ebx], eax
    mov [ebx + {_NUMBER}], ebp
    imul edx, ebp, {BITMAP}
    add edx, bitmaps
    mov [ebx + {_PORTS}], edx
    imul edi, ebp, {PAGE}                   # its GDT: one descriptor, whose base is its area
    add edi, gdts
    mov eax, ebx
    shl eax, 16
    or eax, {AREA - 1}
    mov [edi + 8], eax
    mov eax, ebx
    shr eax, 16
    and eax, 0xff
    and ebx, 0xff000000
    or eax, ebx
    or eax, 0x0040b300
    mov [edi + 12], eax
    call machine_frame
    mov [context + vcpu_guest_context.gdt_frames], eax
    {put("context + vcpu_guest_context.gdt_ents", 2)}
"""
_MORE_CONTEXT: Final = f"""
    imul edi, ebp, {PAGE}
    add edi, gdts
    mov esi, {READ_ONLY}
    xor eax, eax
    call remap
    {line("vcpu {ebp:d}: gdt read-only {eax:d}")}
    imul edx, ebp, {STACK}
    add edx, stacks
    mov [context + vcpu_guest_context.user_regs.esp], edx
    mov [context + vcpu_guest_context.kernel_sp], edx
"""

_SELECTORS: Final[dict[str, str | int]] = {
    "cs": "FLAT_KERNEL_CS", "ss": "FLAT_KERNEL_SS", "ds": "FLAT_KERNEL_DS", "es": "FLAT_KERNEL_DS", "fs": 0,
    "gs": AREA_SELECTOR,
}
_FIXED: Final = "\n".join((
    put("context + vcpu_guest_context.flags", "VGCF_in_kernel"),
    put("context + vcpu_guest_context.user_regs.eip", "&second_entry"),
    *(put(f"context + vcpu_guest_context.user_regs.{name}", value, 2) for name, value in _SELECTORS.items()),
    put("context + vcpu_guest_context.user_regs.eflags", 0x202),
    put("context + vcpu_guest_context.kernel_ss", "FLAT_KERNEL_SS"),
    put("context + vcpu_guest_context.event_callback_cs", "FLAT_KERNEL_CS"),
    put("context + vcpu_guest_context.event_callback_eip", "&event_upcall"),
    put("context + vcpu_guest_context.failsafe_callback_cs", "FLAT_KERNEL_CS"),
    put("context + vcpu_guest_context.failsafe_callback_eip", "&crash"),
))

_MAIN: Final = (
    put("event_hook", "&came_event"), put("area_hook", "&area_of_gs"), "xor eax, eax\nmov gs, ax",
    hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 0, 0),
    "lea eax, [bitmaps]\nmov [vcpu_zero + 4], eax", _COUNT, _FIXED, _FIRST_FRAME,
    line("context: {dword ptr [size]:d} bytes"),
    "xor ebp, ebp", operation("initialise", "VCPUOP_initialise", 0, "&context"),
    operation("up", "VCPUOP_up", 0), runstate("state"),
    f"mov ebp, {ABSENT}", operation("initialise", "VCPUOP_initialise", ABSENT, "&context"),
    operation("up", "VCPUOP_up", ABSENT), operation("down", "VCPUOP_down", ABSENT),
    each("start", "\n".join((
        operation("is up", "VCPUOP_is_up", "ebp"), operation("up too early", "VCPUOP_up", "ebp"), _CONTEXT,
        operation("initialise from a bad pointer", "VCPUOP_initialise", "ebp", 0x7000_0000),
        operation("initialise with a writable GDT", "VCPUOP_initialise", "ebp", "&context"), _MORE_CONTEXT,
        "xor dword ptr [context + vcpu_guest_context.ctrlreg + 12], 0x4000",
        operation("initialise with another root", "VCPUOP_initialise", "ebp", "&context"),
        "xor dword ptr [context + vcpu_guest_context.ctrlreg + 12], 0x4000",
        operation("initialise", "VCPUOP_initialise", "ebp", "&context"),
        operation("initialise again", "VCPUOP_initialise", "ebp", "&context"),
        operation("is up", "VCPUOP_is_up", "ebp"), runstate("state before"),
        bind("ebp", "ports"), line("vcpu {ebp:d}: its interrupt {esi:d}"),
        bind("0", "answers"), line("vcpu {ebp:d}: its answer {esi:d}"),
    ))),
    each("up", operation("up", "VCPUOP_up", "ebp") + "\n" + operation("up again", "VCPUOP_up", "ebp")),
    "call take_turns", wait_for("finished", "wait_finished", "finished"),
    f"mov eax, [vcpus]\nimul eax, eax, {TURNS}\nsub eax, [counter]",
    line("counter: {dword ptr [counter]:d}, missing {eax:d}"),
    put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1),
    each("interrupt", "lea ecx, [ebp*4 + ports]\n" + hypercall(
        "event_channel_op", "EVTCHNOP_send", "ecx") + "\n" + line("vcpu {ebp:d}: sent {eax:d}")),
    _wait("wait_answers", f"vcpu_zero + {_TAKEN}"),
    put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
    line(f"answers: {{dword ptr [vcpu_zero + {_TAKEN}]:d}}"),
    each("down", wait_down("wait_down") + "\n" + operation("is up", "VCPUOP_is_up", "ebp") + "\n" + runstate(
        "state when down")),
    each("back", operation("up", "VCPUOP_up", "ebp")),
    wait_for("returned", "wait_returned", "returned"),
    each("last", wait_down("wait_last") + "\n" + operation("is up", "VCPUOP_is_up", "ebp")),
    line("smp32: done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_MAIN, "ret", _SECOND, events=True, pages=True,
        data=("vcpus: .long 0\nspinlock: .long 0\ncounter: .long 0\nfinished: .long 0\nreturned: .long 0",
              "argument: .long 0, 0\nrunstate: .zero sizeof(vcpu_runstate_info)",
              "size: .long sizeof(vcpu_guest_context)"),
        bss=(".balign 64, 0\ncontext: .zero sizeof(vcpu_guest_context)",
             f"ports: .zero {4 * MAX_VCPUS}\nanswers: .zero {4 * MAX_VCPUS}\nareas: .zero {AREA * MAX_VCPUS}",
             f"bitmaps: .zero {BITMAP * MAX_VCPUS}",
             f".balign 4096, 0\ngdts: .zero {PAGE * 8}\nstacks: .zero {STACK * 8}"),
    )
