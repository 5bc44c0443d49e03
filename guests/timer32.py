"""timer32: events, timers, polling and the upcall of a 32-bit PAE guest, from ring 1 and from ring 3.

What Xen does, and why it is expected (nobody recorded it, as Debian's Xen has no 32-bit PV): results are
those of 64-bit guests; what differs is layout. A 2-level guest of 32 bits has 32 words of 32 ports, so port
1024 is no port. set_timer_op takes two halves; the single-shot and poll structures are 12 and 16 bytes;
run-state times lie at offset 4, as a 64-bit number is aligned to 4. An upcall from ring 3 pushes CS 0xe02b
and the user's stack on the kernel stack, with the mask 0 from before, and starts masked. Prints no times and
no port numbers.
"""
from __future__ import annotations

from typing import Final

from guests.macros32 import get, hypercall, kernel, line, put
from guests.runtime32 import frame

MILLISECOND: Final = 1_000_000
SOON_MS: Final = 20
BAD_POINTER: Final = 0x7000_0000

_CLOCK: Final = f"""
now:                                    # edx:eax = system time in ns, by the shared page and the TSC
    push ebx
    push ecx
    push esi
    push edi
now_again:
    mov esi, [shared_page + vcpu_info.time + vcpu_time_info.version]
    test esi, 1
    jnz now_again
    rdtsc
    sub eax, [shared_page + vcpu_info.time + vcpu_time_info.tsc_timestamp]
    sbb edx, [shared_page + vcpu_info.time + vcpu_time_info.tsc_timestamp + 4]
    movsx ecx, byte ptr [shared_page + vcpu_info.time + vcpu_time_info.tsc_shift]
    test ecx, ecx
    js now_right
    shld edx, eax, cl
    shl eax, cl
    jmp now_scale
now_right:
    neg ecx
    shrd eax, edx, cl
    shr edx, cl
now_scale:
    mov ebx, [shared_page + vcpu_info.time + vcpu_time_info.tsc_to_system_mul]
    mov edi, edx
    mul ebx
    mov ecx, edx
    mov eax, edi
    mul ebx
    add eax, ecx
    adc edx, 0
    add eax, [shared_page + vcpu_info.time + vcpu_time_info.system_time]
    adc edx, [shared_page + vcpu_info.time + vcpu_time_info.system_time + 4]
    cmp esi, [shared_page + vcpu_info.time + vcpu_time_info.version]
    jne now_again
    pop edi
    pop esi
    pop ecx
    pop ebx
    ret

reached:                                # eax = whether the deadline has passed
    call now
    sub eax, [deadline]
    sbb edx, [deadline + 4]
    setns al
    movzx eax, al
    ret

came_event:                             # edi = port
    inc dword ptr [came]
    mov [came_port], edi
    ret

user_code:                              # ring 3: wait for an upcall, then call the kernel
    cmp dword ptr [came], 0
    je user_code
    int 0x24

leave_user:                             # edi -> frame: note what the upcall left, go on in the kernel
    mov eax, [edi + {frame("vector")}]
    mov [left_vector], eax
    mov eax, [edi + {frame("cs")}]
    mov [left_cs], eax
    mov eax, [edi + {frame("ss")}]
    mov [left_ss], eax
    mov esp, [kernel_stack]
    mov eax, FLAT_KERNEL_DS
    mov fs, ax
    mov gs, ax
    jmp user_left

open_page:                              # edi = a page of the image: ring 3 may use it
    push edi
    and edi, 0xfffff000
    mov esi, 0x67
    xor eax, eax
    call remap
    pop edi
    ret
"""


def after(nanoseconds: int, target: str) -> str:
    """Store the time so many ns from now."""
    return f"call now\nadd eax, {nanoseconds}\nadc edx, 0\nmov [{target}], eax\nmov [{target} + 4], edx"


def reached(title: str) -> str:
    """Print whether the deadline has passed."""
    return "call reached\n" + line(title + ": {eax:d}")


def block(title: str) -> str:
    """Block until an event comes (its upcall runs) and print what came."""
    return "\n".join((
        put("came", 0), hypercall("sched_op", "SCHEDOP_block", 0), "mov ebp, eax",
        put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
        get("came_port"), "cmp eax, [port]\nsete al\nmovzx ebx, al",
        line(title + ": {ebp:d} events {dword ptr [came]:d} timer {ebx:d}"),
    ))


_PENDING: Final = """
    mov ecx, [port]
    xor eax, eax
    bt dword ptr [shared_page + shared_info.evtchn_pending], ecx
    setc al
"""
_CLEAR: Final = """
    mov ecx, [port]
    lock btr dword ptr [shared_page + shared_info.evtchn_pending], ecx
    mov byte ptr [shared_page + vcpu_info.evtchn_upcall_pending], 0
    mov dword ptr [shared_page + vcpu_info.evtchn_pending_sel], 0
"""


def poll(title: str, milliseconds: int, ports: int = 1) -> str:
    """Poll the timer's port with a timeout, without upcalls, and print whether it is pending."""
    timeout = after(milliseconds * MILLISECOND, "poll + sched_poll.timeout") if milliseconds else \
        put("poll + sched_poll.timeout", 0) + "\n" + put("poll + sched_poll.timeout + 4", 0)
    return "\n".join((
        timeout, put("poll + sched_poll.nr_ports", ports),
        hypercall("sched_op", "SCHEDOP_poll", "&poll"), "mov ebp, eax", _PENDING,
        line(title + ": {ebp:d} pending {eax:d}"),
    ))


def vcpu(title: str, command: str, argument: str | int = 0, number: int = 0) -> str:
    """A vCPU operation and its result."""
    return hypercall("vcpu_op", command, number, argument) + "\n" + line(title + ": {eax:d}")


def set_timer(title: str, low: str | int, high: str | int) -> str:
    """The one-shot timer of the domain's interface."""
    return hypercall("set_timer_op", low, high) + "\n" + line(title + ": {eax:d}")


def channel(title: str, command: str, structure: str, **fields: str | int) -> str:
    """An event-channel operation on `argument` and its result."""
    stores = [put(f"argument + {structure}.{name}", value, 2 if "dom" in name else 4)
              for name, value in fields.items()]
    return "\n".join((*stores, hypercall("event_channel_op", command, "&argument"),
                      line(title + ": {eax:d}")))


def bits(title: str, port: str) -> str:
    """Print what the shared page says about a port, and about vCPU 0."""
    return "\n".join((
        f"mov ecx, [{port}]",
        "xor eax, eax\nbt dword ptr [shared_page + shared_info.evtchn_pending], ecx\nsetc al",
        ("xor ebx, ebx\nmov edx, ecx\nshr edx, 5\n"
        "bt dword ptr [shared_page + vcpu_info.evtchn_pending_sel], edx"),
        "setc bl\nmovzx esi, byte ptr [shared_page + vcpu_info.evtchn_upcall_pending]",
        line(title + ": pending {eax:d} selected {ebx:d} upcall {esi:d}"),
    ))


_DEADLINE: Final = ("[deadline]", "[deadline + 4]")
_SINGLE: Final = "\n".join((after(MILLISECOND, "deadline"), get("deadline"), "mov [timer], eax",
                            get("deadline + 4"), "mov [timer + 4], eax", put("timer + 8", 0)))
_USER: Final = f"""
    lea edi, [user_code]
    call open_page
    add edi, 4096
    call open_page
    lea edi, [came]
    call open_page
    lea edi, [user_stack]
    call open_page
    {hypercall("stack_switch", "FLAT_KERNEL_SS", "&kernel_stack_top")}
    {put("trap_hook", "&leave_user")}
    {put("came", 0)}
    {after(2 * MILLISECOND, "deadline")}
    {hypercall("set_timer_op", *_DEADLINE)}
    mov [kernel_stack], esp
    mov ecx, FLAT_USER_DS
    mov ds, cx
    mov es, cx
    push FLAT_USER_SS
    lea eax, [user_stack + 4096]
    push eax
    push 0x202
    push FLAT_USER_CS
    lea eax, [user_code]
    push eax
    push eax
    mov eax, __HYPERVISOR_iret
    int 0x82
user_left:
    {put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1)}
    movzx eax, word ptr [left_cs]
    {line("left ring 3: vector {dword ptr [left_vector]:d} cs {eax:x} ss {dword ptr [left_ss]:x}")}
    {line("events there: {dword ptr [came]:d}")}
    {reached("not early")}
"""

_RUNSTATE: Final = f"""
    {hypercall("vcpu_op", "VCPUOP_get_runstate_info", 0, "&runstate")}
    {line("runstate: {eax:d} state {dword ptr [runstate]:d}")}
    mov eax, [runstate + vcpu_runstate_info.time + 16]
    cmp eax, {2 * MILLISECOND}
    setae al
    movzx eax, al
    {line("blocked for 2 ms at least: {eax:d}")}
    {put("pointer", "&runstate_area")}
    {vcpu("register run state", "VCPUOP_register_runstate_memory_area", "&pointer")}
    {hypercall("sched_op", "SCHEDOP_yield", 0)}
    mov eax, [runstate_area + vcpu_runstate_info.state_entry_time]
    or eax, [runstate_area + vcpu_runstate_info.state_entry_time + 4]
    setnz al
    movzx eax, al
    {line("run state area: state {dword ptr [runstate_area]:d}, since some time {eax:d}")}
    {put("pointer", "&time_area")}
    {vcpu("register time", "VCPUOP_register_vcpu_time_memory_area", "&pointer")}
    mov eax, [time_area + vcpu_time_info.tsc_to_system_mul]
    sub eax, [shared_page + vcpu_info.time + vcpu_time_info.tsc_to_system_mul]
    {line("its multiplier against the shared one: {eax:d}")}
    {put("pointer", 0xF580_0000)}
    {vcpu("register time in Xen", "VCPUOP_register_vcpu_time_memory_area", "&pointer")}
"""

_MAIN: Final = (
    put("event_hook", "&came_event"), vcpu("stop periodic", "VCPUOP_stop_periodic_timer"),
    channel("virq timer", "EVTCHNOP_bind_virq", "evtchn_bind_virq", virq="VIRQ_TIMER", vcpu=0),
    get("argument + evtchn_bind_virq.port"), put("port", "eax"), put("poll + sched_poll.ports", "&port"),

    line("-- events"),
    channel("allocate", "EVTCHNOP_alloc_unbound", "evtchn_alloc_unbound", dom="DOMID_SELF",
            remote_dom="DOMID_SELF"),
    get("argument + evtchn_alloc_unbound.port"), put("first", "eax"),
    channel("bind", "EVTCHNOP_bind_interdomain", "evtchn_bind_interdomain", remote_dom="DOMID_SELF",
            remote_port="[first]"),
    get("argument + evtchn_bind_interdomain.local_port"), put("second", "eax"),
    channel("unmask", "EVTCHNOP_unmask", "evtchn_unmask", port="[second]"), _CLEAR,
    "mov ecx, [second]\nlock btr dword ptr [shared_page + shared_info.evtchn_pending], ecx",
    channel("send", "EVTCHNOP_send", "evtchn_send", port="[first]"), bits("sent", "second"),
    put("came", 0), put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1),
    hypercall("xen_version", "XENVER_version", 0), put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
    line("upcalls: {dword ptr [came]:d}"), bits("after it", "second"),
    channel("send to port 1023", "EVTCHNOP_send", "evtchn_send", port=1023),
    channel("send to port 1024", "EVTCHNOP_send", "evtchn_send", port=1024),
    channel("close", "EVTCHNOP_close", "evtchn_close", port="[first]"),

    line("-- set_timer_op"),
    after(MILLISECOND, "deadline"), set_timer("in 1 ms", *_DEADLINE), block("block"), reached("not early"),
    set_timer("in the past", 1, 0), block("block"),
    set_timer("negative", 1, 0x8000_0000), poll("poll for 1 ms", 1),
    set_timer("cancel", 0, 0), poll("poll for 1 ms", 1),
    after(MILLISECOND, "deadline"), set_timer("far off by the upper half", "[deadline]", 1 << 16),
    poll("poll for 1 ms", 1), set_timer("cancel", 0, 0),

    line("-- vcpu timers"),
    _SINGLE, vcpu("single shot in 1 ms", "VCPUOP_set_singleshot_timer", "&timer"), block("block"),
    reached("not early"),
    put("timer", 1), put("timer + 4", 0), vcpu("in the past", "VCPUOP_set_singleshot_timer", "&timer"),
    block("block"), put("timer", 1000), vcpu("every microsecond", "VCPUOP_set_periodic_timer", "&timer"),
    put("timer", 2 * MILLISECOND), vcpu("every 2 ms", "VCPUOP_set_periodic_timer", "&timer"), put("came", 0),
    put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1),
    "ticking:\npause\ncmp dword ptr [came], 3\njb ticking",
    put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1), vcpu("stop", "VCPUOP_stop_periodic_timer"),
    _CLEAR,
    vcpu("from a bad pointer", "VCPUOP_set_singleshot_timer", BAD_POINTER),

    line("-- poll"),
    set_timer("in the past", 1, 0), poll("poll without a timeout", 0), _CLEAR,
    poll("129 ports", 1, 129), poll("no port, 1 ms", 1, 0),
    put("bad_port", 1024), put("poll + sched_poll.ports", "&bad_port"), poll("port 1024", 1),
    put("poll + sched_poll.ports", BAD_POINTER), poll("ports behind a bad pointer", 1),
    hypercall("sched_op", "SCHEDOP_poll", BAD_POINTER), line("bad pointer: {eax:d}"),
    hypercall("sched_op_compat", 0, 0), line("compat yield: {eax:d}"),

    line("-- ring 3"), _USER,
    line("-- areas"), _RUNSTATE,
    line("timer32: done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_MAIN, "ret", _CLOCK, events=True, pages=True, trap_flags={0x24: 3},
        data=("came: .long 0\ncame_port: .long 0\nport: .long 0\nfirst: .long 0\nsecond: .long 0",
              "bad_port: .long 0\npointer: .long 0, 0",
              "left_vector: .long 0\nleft_cs: .long 0\nleft_ss: .long 0",
              "kernel_stack: .long 0\ndeadline: .long 0, 0\ntimer: .long 0, 0, 0\nargument: .zero 64",
              "poll: .zero sizeof(sched_poll)\nrunstate: .zero sizeof(vcpu_runstate_info)"),
        bss=(".balign 4096, 0\nuser_stack: .zero 4096\nkernel_stack_area: .zero 4096\nkernel_stack_top:",
             "runstate_area: .zero 64\ntime_area: .zero 64"),
    )
