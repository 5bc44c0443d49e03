"""timer: the clock, set_timer_op, the vCPU's timers, and blocking, polling and yielding.

Prints whether time did what it must (not before the deadline, never backwards), never a time.
"""
from __future__ import annotations

from typing import Final

from guests import clock
from guests.macros import get, hypercall, kernel, line, put

MILLISECOND: Final = 1_000_000
SOON_MS: Final = 20
SOON: Final = SOON_MS * MILLISECOND
"""Far enough off to be cancelled in time on a slow host under emulation."""
LONG: Final = 3_600_000 * MILLISECOND
"""An hour: further off than any wait of this guest."""
BAD_POINTER: Final = 0x7000_0000_0000

_EVENT: Final = """
came_event:                             # rdi = port
    inc qword ptr [rip + came]
    mov [rip + came_port], rdi
    ret
"""


def after(nanoseconds: int, target: str) -> str:
    """Store the time so many ns from now; 0 stays `now`."""
    return f"call now\nmov rcx, {nanoseconds}\nadd rax, rcx\nmov [rip + {target}], rax"


def reached(title: str) -> str:
    """Print whether the deadline has passed."""
    return "call now\ncmp rax, [rip + deadline]\nsetae al\nmovzx eax, al\n" + line(title + ": {rax:d}")


def block(title: str) -> str:
    """Block until an event comes (its upcall runs) and print what came."""
    return "\n".join((
        put("came", 0), hypercall("sched_op", "SCHEDOP_block", 0), "mov r12, rax",
        put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
        get("came_port"), "cmp rax, [rip + port]\nsete al\nmovzx ebx, al",
        line(title + ": {r12:d} events {qword ptr [rip + came]:d} timer {rbx:d}"),
    ))


def poll(title: str, milliseconds: int, ports: int = 1) -> str:
    """Poll the timer's port with a timeout, without upcalls, and print whether it is pending."""
    timeout = after(milliseconds * MILLISECOND, "poll + sched_poll.timeout") if milliseconds > 0 else \
        put("poll + sched_poll.timeout", -milliseconds)
    return "\n".join((
        timeout, put("poll + sched_poll.nr_ports", ports, 4),
        hypercall("sched_op", "SCHEDOP_poll", "&poll"), "mov r12, rax", _PENDING,
        line(title + ": {r12:d} pending {rax:d}"),
    ))


_PENDING: Final = """
    mov rcx, [rip + port]
    xor eax, eax
    bt qword ptr [rip + shared_page + shared_info.evtchn_pending], rcx
    setc al
"""
_CLEAR: Final = """
    mov rcx, [rip + port]
    lea rbx, [rip + shared_page]
    lock btr qword ptr [rbx + shared_info.evtchn_pending], rcx
    mov byte ptr [rbx + vcpu_info.evtchn_upcall_pending], 0
    mov qword ptr [rbx + vcpu_info.evtchn_pending_sel], 0
"""


def vcpu(title: str, command: str, argument: str | int = 0, number: int = 0) -> str:
    """A vCPU operation and its result."""
    return hypercall("vcpu_op", command, number, argument) + "\n" + line(title + ": {rax:d}")


def set_timer(title: str, value: str | int) -> str:
    """The one-shot timer of the domain's interface."""
    return hypercall("set_timer_op", value) + "\n" + line(title + ": {rax:d}")


_MONOTONIC: Final = f"""
    call now
    mov rbx, rax
    mov r12d, 1000
    xor r13d, r13d
monotonic:
    call now
    cmp rax, rbx
    jae monotonic_next
    inc r13
monotonic_next:
    mov rbx, rax
    dec r12d
    jnz monotonic
    {line("backwards: {r13:d}")}
    mov eax, [rip + shared_page + shared_info.wc_version]
    and eax, 1
    {line("wall clock being written: {rax:d}")}
"""

_PERIODIC: Final = f"""
    {after(8 * MILLISECOND, "deadline")}
    {put("timer", 2 * MILLISECOND)}
    {vcpu("periodic, 2 ms", "VCPUOP_set_periodic_timer", "&timer")}
    {put("came", 0)}
    {put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1)}
periodic:                               # the timer ticks while the vCPU runs, and does not wake it
    pause
    cmp qword ptr [rip + came], 5
    jb periodic
    {put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1)}
    {reached("five periods take 8 ms")}
    mov r14d, 10                            # a tick right before the block ends it: then try again
sleep_through:
    {_CLEAR}
    {after(6 * MILLISECOND, "deadline")}
    {hypercall("set_timer_op", "[rip + deadline]")}
    {hypercall("sched_op", "SCHEDOP_block", 0)}
    {put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1)}
    call now
    cmp rax, [rip + deadline]
    jae slept
    dec r14d
    jnz sleep_through
slept:
    {reached("periods do not wake it")}
    {vcpu("stop periodic", "VCPUOP_stop_periodic_timer")}
    {_CLEAR}
"""

_RUNSTATE: Final = f"""
    {hypercall("vcpu_op", "VCPUOP_get_runstate_info", 0, "&runstate")}
    mov ebx, [rip + runstate]
    {line("runstate: {rax:d} state {rbx:d}")}
    mov rbx, [rip + runstate + vcpu_runstate_info.time]
    add rbx, [rip + runstate + vcpu_runstate_info.time + 8]
    add rbx, [rip + runstate + vcpu_runstate_info.time + 16]
    add rbx, [rip + runstate + vcpu_runstate_info.time + 24]
    call now
    cmp rbx, rax
    setbe al
    movzx eax, al
    {line("its times are no more than all time: {rax:d}")}
    mov rbx, [rip + runstate + vcpu_runstate_info.time + {8 * 2}]
    cmp rbx, {8 * MILLISECOND}
    setae al
    movzx eax, al
    {line("blocked for 8 ms at least: {rax:d}")}
"""

_MAIN: Final = (
    put("event_hook", "&came_event"), vcpu("stop periodic", "VCPUOP_stop_periodic_timer"),
    put("argument + evtchn_bind_virq.virq", "VIRQ_TIMER", 4), put("argument + evtchn_bind_virq.vcpu", 0, 4),
    hypercall("event_channel_op", "EVTCHNOP_bind_virq", "&argument"), line("virq timer: {rax:d}"),
    get("argument + evtchn_bind_virq.port", 4), put("port", "rax"), put("poll + sched_poll.ports", "&port"),
    _MONOTONIC,

    line("-- set_timer_op"),
    after(MILLISECOND, "deadline"), set_timer("in 1 ms", "[rip + deadline]"), block("block"),
    reached("not early"),
    put("deadline", 0), set_timer("in the past", 1), block("block"),
    after(SOON, "deadline"), hypercall("set_timer_op", "[rip + deadline]"), "mov r12, rax",
    hypercall("set_timer_op", 0), line("set {r12:d} cancelled {rax:d}"),
    poll("poll beyond the deadline", 2 * SOON_MS), reached("not early"),
    after(LONG, "deadline"), set_timer("in an hour", "[rip + deadline]"), poll("poll for 1 ms", 1),
    after(2 * MILLISECOND, "deadline"), set_timer("moved to 2 ms", "[rip + deadline]"), block("block"),
    reached("not early"),

    line("-- singleshot"),
    after(MILLISECOND, "deadline"), get("deadline"), put("timer", "rax"), put("timer + 8", 0, 4),
    vcpu("in 1 ms", "VCPUOP_set_singleshot_timer", "&timer"), block("block"), reached("not early"),
    put("timer", 1), vcpu("in the past", "VCPUOP_set_singleshot_timer", "&timer"), block("block"),
    put("timer", 1), put("timer + 8", "VCPU_SSHOTTMR_future", 4),
    vcpu("in the past, future only", "VCPUOP_set_singleshot_timer", "&timer"), poll("poll for 1 ms", 1),
    _CLEAR,
    after(SOON, "timer"), put("timer + 8", "VCPU_SSHOTTMR_future", 4),
    hypercall("vcpu_op", "VCPUOP_set_singleshot_timer", 0, "&timer"), "mov r12, rax",
    hypercall("vcpu_op", "VCPUOP_stop_singleshot_timer", 0, 0), line("set {r12:d} stopped {rax:d}"),
    poll("poll beyond the deadline", 2 * SOON_MS),
    vcpu("from a bad pointer", "VCPUOP_set_singleshot_timer", BAD_POINTER),
    vcpu("of no vcpu", "VCPUOP_set_singleshot_timer", "&timer", 77),

    line("-- periodic"),
    put("timer", 1000), vcpu("every microsecond", "VCPUOP_set_periodic_timer", "&timer"),
    put("timer", 1 << 62), vcpu("every 146 years", "VCPUOP_set_periodic_timer", "&timer"),
    vcpu("from a bad pointer", "VCPUOP_set_periodic_timer", BAD_POINTER),
    _PERIODIC, poll("poll for 5 ms", 5),

    line("-- poll"),
    set_timer("in the past", 1), poll("poll for an hour, timer fires", 3_600_000),
    poll("poll for an hour, already pending", 3_600_000), poll("no timeout, already pending", 0), _CLEAR,
    poll("timeout in the past", -1), poll("129 ports", 1, 129), poll("no port, 1 ms", 1, 0),
    put("bad_port", 4096), put("poll + sched_poll.ports", "&bad_port"), poll("port 4096", 1),
    put("poll + sched_poll.ports", BAD_POINTER), poll("ports behind a bad pointer", 1),
    hypercall("sched_op", "SCHEDOP_poll", BAD_POINTER), line("bad pointer: {rax:d}"),

    line("-- yield"),
    hypercall("sched_op", "SCHEDOP_yield", 0), line("yield: {rax:d}"),
    hypercall("sched_op", 99, 0), line("operation 99: {rax:d}"),
    hypercall("sched_op_compat", "SCHEDOP_yield", 0), line("compat yield: {rax:d}"),
    set_timer("in the past", 1), hypercall("sched_op_compat", "SCHEDOP_block", 0), "mov r12, rax",
    put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1), line("compat block: {r12:d}"),
    _RUNSTATE,
    line("timer: done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_MAIN, "ret", clock.NOW, _EVENT, events=True,
        data=(
            "port: .quad 0\nbad_port: .quad 0\ncame: .quad 0\ncame_port: .quad 0\ndeadline: .quad 0",
            "timer: .quad 0, 0\nargument: .quad 0, 0\npoll: .quad 0, 0, 0\nrunstate: .zero 64",
        ),
    )
