"""smp: brings up every vCPU there is; they count under a lock, interrupt each other, go down and come back.

The last number of each line is what all vCPUs did together, so it does not depend on how they were scheduled.
"""
from __future__ import annotations

from typing import Final

from guests import runtime, team
from guests.macros import get, hypercall, kernel, line, put
from guests.team import MAX_VCPUS

TURNS: Final = 1000
"""How often each vCPU takes the lock."""
STACK: Final = 4096
"""Bytes of a vCPU's stack; the one of vCPU n ends n stacks from the first, vCPU 0 needs none."""
VCPU_INFO_SHIFT: Final = 6
"""log2 of a vcpu_info's size."""
ABSENT: Final = 77

AREA: Final = 32
_PORTS, _NUMBER, _TAKEN = (runtime.VCPU_AREA.index(word) * 8 for word in ("ports", "number", "taken"))
BITMAP: Final = 512
"""Bytes of a bitmap of ports."""

_SECOND: Final = f"""
second_entry:                           # a vCPU that came up: gs -> its area, rsp -> its stack
    mov r15, qword ptr gs:[{_NUMBER}]
    call take_turns
    lock inc qword ptr [rip + finished]
    {hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", "r15", 0)}
second_wait:                            # wait for its event, with the upcall; then answer vCPU 0
    {hypercall("sched_op", "SCHEDOP_block", 0)}
    cmp qword ptr gs:[{_TAKEN}], 0
    je second_wait
    call answer
    {hypercall("vcpu_op", "VCPUOP_down", "r15", 0)}
    lock inc qword ptr [rip + returned]     # brought up again: it goes on here
    {hypercall("vcpu_op", "VCPUOP_down", "r15", 0)}
    jmp crash

answer:                                 # r15 = this vCPU: send the event vCPU 0 waits for
    lea rax, [rip + answers]
    mov eax, [rax + r15*4]
    sub rsp, 8
    mov [rsp], eax
    mov rsi, rsp
    {hypercall("event_channel_op", "EVTCHNOP_send", "rsi")}
    add rsp, 8
    ret

take_turns:                             # add to the counter, {TURNS:,} times, under the lock
    mov ecx, {TURNS}
take_lock:
    mov eax, 1
    xchg eax, [rip + spinlock]
    test eax, eax
    jz locked
    pause
    jmp take_lock
locked:
    mov rax, [rip + counter]
    inc rax
    mov [rip + counter], rax
    mov dword ptr [rip + spinlock], 0
    dec ecx
    jnz take_lock
    ret

came_event:                             # an event: the vCPU it came to counts it
    inc qword ptr gs:[{_TAKEN}]
    ret
"""

_COUNT: Final = f"""
    xor r12d, r12d
find_vcpus:
    {hypercall("vcpu_op", "VCPUOP_is_up", "r12", 0)}
    test rax, rax
    js found_vcpus
    inc r12d
    cmp r12d, {MAX_VCPUS}
    jb find_vcpus
found_vcpus:
    mov [rip + vcpus], r12
    {line("vcpus: {r12:d}, then {rax:d}")}
"""


def operation(title: str, command: str, vcpu: str | int, argument: str | int = 0) -> str:
    """A vCPU operation and its result."""
    return hypercall("vcpu_op", command, vcpu, argument) + "\n" + line("vcpu {r12:d}: " + title + " {rax:d}")


def each(label: str, body: str) -> str:
    """Do `body` for every vCPU but the first; r12 is its number."""
    head = f"mov r12d, 1\n{label}:\ncmp r12, [rip + vcpus]\njae {label}_done"
    return f"{head}\n{body}\ninc r12d\njmp {label}\n{label}_done:"


def runstate(title: str) -> str:
    """Print the run state of vCPU r12."""
    return hypercall("vcpu_op", "VCPUOP_get_runstate_info", "r12", "&runstate") + \
        "\nmovsxd rbx, dword ptr [rip + runstate]\n" + line("vcpu {r12:d}: " + title + " {rbx:d}")


def wait_for(title: str, label: str, counter: str) -> str:
    """Yield until every other vCPU has counted."""
    return _wait(label, counter) + "\n" + line(title + ": {qword ptr [rip + " + counter + "]:d}")


def _wait(label: str, counter: str) -> str:
    return f"mov rbx, [rip + vcpus]\ndec rbx\n{label}:\ncall yield\ncmp [rip + {counter}], rbx\njb {label}"


def wait_down(label: str) -> str:
    """Yield until vCPU r12 is down."""
    return f"{label}:\ncall yield\n" + hypercall("vcpu_op", "VCPUOP_is_up", "r12", 0) + \
        f"\ntest rax, rax\njnz {label}"


def bind(vcpu: str, table: str) -> str:
    """Bind an interrupt to a vCPU (r12, or r13: the first) and keep its port at table[r12]."""
    return "\n".join((
        put("argument + evtchn_bind_ipi.vcpu", vcpu, 4),
        hypercall("event_channel_op", "EVTCHNOP_bind_ipi", "&argument"), "mov rbx, rax",
        get("argument + evtchn_bind_ipi.port", 4), f"lea rcx, [rip + {table}]\nmov [rcx + r12*4], eax",
        f"imul rdx, {vcpu}, {BITMAP}\nlea rcx, [rip + bitmaps]\nbts [rcx + rdx], rax",
    ))


_CONTEXT: Final = f"""
    mov rax, r12                            # its area: vcpu_info, number
    shl rax, {VCPU_INFO_SHIFT}
    lea rcx, [rip + shared_page]
    add rcx, rax
    lea rbx, [rip + areas]
    imul rdx, r12, {AREA}
    add rbx, rdx
    mov [rbx], rcx
    mov [rbx + {_NUMBER}], r12
    imul rdx, r12, {BITMAP}
    lea rcx, [rip + bitmaps]
    add rcx, rdx
    mov [rbx + {_PORTS}], rcx
    mov [rip + context + vcpu_guest_context.gs_base_kernel], rbx
    imul rdx, r12, {STACK}
    lea rcx, [rip + stacks]
    add rcx, rdx
    mov [rip + context + vcpu_guest_context.user_regs.rsp], rcx
    mov [rip + context + vcpu_guest_context.kernel_sp], rcx
"""

_MAIN: Final = (
    put("event_hook", "&came_event"), hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 0, 0),
    "lea rax, [rip + bitmaps]\nmov [rip + vcpu_zero + 8], rax\nxor r13d, r13d", _COUNT,
    team.context("second_entry", "event_upcall"), team.FIRST_FRAME,
    "xor r12d, r12d", operation("initialise", "VCPUOP_initialise", 0, "&context"),
    operation("up", "VCPUOP_up", 0), runstate("state"),
    f"mov r12d, {ABSENT}", operation("initialise", "VCPUOP_initialise", ABSENT, "&context"),
    operation("up", "VCPUOP_up", ABSENT), operation("down", "VCPUOP_down", ABSENT),
    each("start", "\n".join((
        operation("is up", "VCPUOP_is_up", "r12"), operation("up too early", "VCPUOP_up", "r12"), _CONTEXT,
        operation("initialise from a bad pointer", "VCPUOP_initialise", "r12", 0x7000_0000_0000),
        operation("initialise", "VCPUOP_initialise", "r12", "&context"),
        operation("initialise again", "VCPUOP_initialise", "r12", "&context"),
        operation("is up", "VCPUOP_is_up", "r12"), runstate("state before"),
        bind("r12", "ports"), line("vcpu {r12:d}: its interrupt {rbx:d}"),
        bind("r13", "answers"), line("vcpu {r12:d}: its answer {rbx:d}"),
    ))),
    each("up", operation("up", "VCPUOP_up", "r12") + "\n" + operation("up again", "VCPUOP_up", "r12")),
    "call take_turns", wait_for("finished", "wait_finished", "finished"),
    f"mov rax, [rip + vcpus]\nimul rax, rax, {TURNS}\nsub rax, [rip + counter]",
    line("counter: {qword ptr [rip + counter]:d}, missing {rax:d}"),
    put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1),
    each("interrupt", "lea rsi, [rip + ports]\nlea rsi, [rsi + r12*4]\n" + hypercall(
        "event_channel_op", "EVTCHNOP_send", "rsi") + "\n" + line("vcpu {r12:d}: sent {rax:d}")),
    _wait("wait_answers", f"vcpu_zero + {_TAKEN}"),
    put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
    line(f"answers: {{qword ptr [rip + vcpu_zero + {_TAKEN}]:d}}"),
    each("down", wait_down("wait_down") + "\n" + operation("is up", "VCPUOP_is_up", "r12") + "\n" + runstate(
        "state when down")),
    each("back", operation("up", "VCPUOP_up", "r12")),
    wait_for("returned", "wait_returned", "returned"),
    each("last", wait_down("wait_last") + "\n" + operation("is up", "VCPUOP_is_up", "r12")),
    line("smp: done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_MAIN, "ret", _SECOND, events=True, pages=True,
        data=("vcpus: .quad 0\nspinlock: .quad 0\ncounter: .quad 0\nfinished: .quad 0\nreturned: .quad 0",
              "argument: .quad 0\nrunstate: .zero sizeof(vcpu_runstate_info)"),
        bss=(".balign 64, 0\ncontext: .zero sizeof(vcpu_guest_context)",
             f"ports: .zero {4 * MAX_VCPUS}\nanswers: .zero {4 * MAX_VCPUS}\nareas: .zero {AREA * MAX_VCPUS}",
             f"bitmaps: .zero {BITMAP * MAX_VCPUS}",
             f".balign 16, 0\nstacks: .zero {STACK * MAX_VCPUS}"),
    )
