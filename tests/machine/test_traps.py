"""Every trap arrives with the exact instruction pointer, error code and address."""

from __future__ import annotations

import pytest

from machine import Core, EngineOptions
from machine import registers as reg
from machine.engine import EXCEPTION_NS
from tests.machine.rig import CODE, DATA, DONE, RW_NX, STACK_TOP, Rig, Tables, asm, degraded

PREFIX = "mov eax, 0x1234\nxor ecx, ecx\n"
ENGINES = [EngineOptions(), degraded()]
AT = CODE + len(asm(PREFIX))

PRIVILEGED = [
    "hlt",
    "cli",
    "sti",
    "in al, dx",
    "in ax, 0x10",
    "out dx, eax",
    "out 0xe9, al",
    "rdmsr",
    "wrmsr",
    "mov rax, cr0",
    "mov cr0, rax",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov cr4, rax",
    "mov rax, dr7",
    "mov dr7, rax",
    "lgdt [rsp]",
    "lidt [rsp]",
    "lldt ax",
    "ltr ax",
    "swapgs",
    "invlpg [rax]",
    "wbinvd",
    "clts",
    "sysret",
]


@pytest.mark.parametrize("instruction", PRIVILEGED)
def test_privileged_instruction_is_gp_0_at_it(instruction: str) -> None:
    with Rig(PREFIX + instruction + "\nmov ebx, 1") as rig:
        rig.run()
        assert rig.handler.traps == [(13, 0, False, AT)]
        assert rig.core.q[reg.RAX] == 0x1234
        assert rig.core.q[reg.RBX] == 0


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
@pytest.mark.parametrize(
    ("instruction", "error", "address"),
    [
        ("mov rdx, [rcx + 0x600010]", 4, 0x600010),
        ("mov [rcx + 0x600018], rdx", 6, 0x600018),
        ("mov [rcx + 0x501000], rdx", 7, 0x501000),
        ("mov rdx, [rcx + 0x502008]", 5, 0x502008),
        ("mov rdx, 0x500000\njmp rdx", 0x15, 0x500000),
    ],
    ids=["absent load", "absent store", "read-only store", "supervisor load", "no-execute jump"],
)
def test_page_fault(instruction: str, error: int, address: int, engine: EngineOptions) -> None:
    with Rig(PREFIX + instruction, engine=engine) as rig:
        rig.tables.map(DATA, 0x300000, RW_NX)
        rig.tables.map(DATA + 0x1000, 0x301000, 5)
        rig.tables.map(DATA + 0x2000, 0x302000, 3)
        rig.run()
        vector, got, software, rip = rig.handler.traps[0]
        assert (vector, got, software) == (14, error, False)
        assert rip == (address if error & 0x10 else AT)
        assert rig.core.q[reg.CR2] == address


def test_a_mended_fault_is_retried_and_later_faults_are_not_double() -> None:
    with Rig(
        "mov rbx, 0x500000\nmov [rbx], rax\nmov [rbx + 0x1000], rax\nmov [rbx + 0x2000], rax\nint 0x90"
    ) as rig:
        rig.handler.on[14] = lambda core: rig.tables.map(core.q[reg.CR2], core.q[reg.CR2] - 0x200000)
        rig.core.q[reg.RAX] = 0x77
        rig.run()
        assert [trap[0] for trap in rig.handler.traps] == [14, 14, 14]
        assert [rig.machine.memory.q[0x300000 + 0x1000 * i >> 3] for i in range(3)] == [0x77] * 3


def test_a_store_across_a_page_into_an_absent_one_stores_nothing() -> None:
    with Rig(PREFIX + "mov rdx, -1\nmov [rcx + 0x500ffc], rdx") as rig:
        rig.tables.map(DATA, 0x300000)
        rig.run()
        assert rig.handler.traps == [(14, 6, False, AT + len(asm("mov rdx, -1")))]
        assert rig.core.q[reg.CR2] == 0x501000
        assert rig.machine.memory.read(0x300FFC, 4) == bytes(4)


def test_a_fault_inside_rep_movsb_stops_at_the_exact_byte() -> None:
    with Rig("mov ecx, 0x200\nmov rsi, 0x500000\nmov rdi, 0x501f80\nrep movsb") as rig:
        rig.tables.map(DATA, 0x300000)
        rig.tables.map(DATA + 0x1000, 0x301000)
        rig.run()
        assert rig.core.q[reg.CR2] == 0x502000
        assert rig.core.q[reg.RCX] == 0x200 - 0x80
        assert rig.core.q[reg.RSI] == 0x500080
        assert rig.core.q[reg.RDI] == 0x502000


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
@pytest.mark.parametrize(
    ("instruction", "trap"),
    [
        ("div ecx", (0, 0, False, AT)),
        ("ud2", (6, 0, False, AT)),
        ("int3", (3, 0, True, AT + 1)),
        ("int 0x82", (0x82, 0, True, AT + 2)),
        ("syscall", ("syscall", AT + 2)),
        ("cpuid", ("cpuid", AT)),
        ("mov rdx, 0x1234567800000000\nmov rdx, [rdx]", (13, 0, False, AT + 10)),
    ],
)
def test_trap(instruction: str, trap: tuple[object, ...], engine: EngineOptions) -> None:
    with Rig(PREFIX + instruction + "\nint 0x90", engine=engine) as rig:
        rig.run()
        assert rig.handler.traps == [trap]


def test_rip_changed_in_a_handler_is_where_it_goes_on() -> None:
    with Rig("syscall\nud2\nnop\nud2\nint3") as rig:
        target = CODE + 5

        def to_target(core: Core) -> None:
            core.q[reg.RIP] = target

        def skip(core: Core) -> None:
            core.q[reg.RIP] += 2

        rig.handler.on = {"syscall": to_target, 6: skip}
        rig.run()
        assert rig.handler.traps == [("syscall", CODE + 2), (6, 0, False, target), (3, 0, True, target + 3)]


def test_cpuid_goes_on_behind_the_instruction() -> None:
    with Rig("mov eax, 1\ncpuid\nmov r8, rax\nint 0x90") as rig:

        def fill(core: Core) -> None:
            core.q[reg.RAX] = 0xABC

        rig.handler.on["cpuid"] = fill
        rig.run()
        assert rig.core.q[reg.R8] == 0xABC


def test_task_switched_makes_fpu_and_sse_trap_until_cleared() -> None:
    with Rig("movaps xmm0, xmm1\nfld1\nint 0x90") as rig:
        rig.core.set_cr0_ts(True)
        rig.handler.on[7] = lambda core: core.set_cr0_ts(False)
        rig.run()
        assert rig.handler.traps == [(7, 0, False, CODE)]


def test_single_step_reports_every_instruction() -> None:
    with Rig("nop\nmov eax, 5\nnop\nint 0x90") as rig:
        rig.core.single_step(True)
        seen: list[int] = []

        def step(core: Core) -> None:
            seen.append(core.q[reg.RIP] - CODE)
            if len(seen) == 3:
                core.single_step(False)

        rig.handler.on[1] = step
        rig.run()
        assert seen == [1, 6, 7]


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
def test_time_stamps_are_the_cores_time_and_cost_100_ns(engine: EngineOptions) -> None:
    with Rig("rdtsc\nmov r8, rax\nrdtscp\nmov r9, rax\nmov r10, rcx\nint 0x90", engine=engine) as rig:
        rig.core.q[reg.TSC_AUX] = 7
        rig.core.advance(5 << 32)
        rig.run()
        q = rig.core.q
        assert q[reg.RDX] == 5
        assert (q[reg.R8], q[reg.R9], q[reg.R10]) == (10, 110, 7)
        assert rig.core.now() == (5 << 32) + 210 + EXCEPTION_NS
        assert rig.core.blocks == 1
        assert rig.core.tsc_reads == 2


@pytest.mark.parametrize("instruction", ["rdtsc", "rdtscp"])
def test_time_stamp_disable(instruction: str) -> None:
    with Rig(PREFIX + instruction) as rig:
        rig.core.q[reg.CR4] |= reg.CR4_TSD
        rig.run()
        assert rig.handler.traps == [(13, 0, False, AT)]


def test_flags_are_exact_at_a_fault() -> None:
    with Rig("std\nmov edx, 5\nsub edx, 5\nmov rdx, [rcx + 0x600000]") as rig:
        rig.run()
        flags = reg.FLAG_IF | reg.FLAG_DF | reg.FLAG_ZF | reg.FLAG_PF | reg.FLAG_FIXED
        assert rig.core.eflags() == flags
        rig.core.set_eflags(flags & ~reg.FLAG_FIXED)
        assert rig.core.eflags() == flags


@pytest.mark.parametrize("value", [0x2, 0x202, 0xAD7, 0x40602, 0x8D7 | 1 << 21 | 1 << 14])
def test_flags_set_are_flags_pushed(value: int) -> None:
    with Rig("pushfq\npop rbx\nint 0x90") as rig:
        rig.core.set_eflags(value)
        assert rig.core.eflags() == value
        rig.run()
        assert rig.core.q[reg.RBX] == value


def test_a_handlers_exception_ends_the_run_and_the_machine_can_go_on() -> None:
    with Rig("syscall\nmov ebx, 7\nint 0x90") as rig:

        def fail(_core: Core) -> None:
            raise LookupError("on purpose")

        rig.handler.on["syscall"] = fail
        with pytest.raises(LookupError, match="on purpose"):
            rig.run()
        assert rig.core.q[reg.RBX] == 0
        rig.run()
        assert rig.core.q[reg.RBX] == 7


def test_stack_is_where_it_was_at_a_faulting_push() -> None:
    with Rig("mov rsp, 0x600000\npush rax") as rig:
        rig.run()
        assert rig.core.q[reg.RSP] == 0x600000
        assert rig.core.q[reg.CR2] == 0x600000 - 8
        assert STACK_TOP != 0x600000
        assert DONE not in [trap[0] for trap in rig.handler.traps]


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
def test_a_fetch_that_faults_for_ever_uses_up_its_time(engine: EngineOptions) -> None:
    with Rig("mov rax, 0x600000\njmp rax", engine=engine) as rig:
        rig.handler.on[14] = lambda core: None
        rig.run(deadline_ns=20_000)
        assert rig.core.now() == 10 + EXCEPTION_NS * len(rig.handler.traps)
        assert 20_000 <= rig.core.now() < 20_000 + EXCEPTION_NS
        assert rig.core.blocks == 1


def test_open_ports_answer_the_kernel_bank_only() -> None:
    with Rig("in al, dx\nmov ebx, eax\nout 0x80, al\nmov edx, 0xcf8\nin eax, dx\nint 0x90") as rig:
        rig.core.open_ports(True)
        rig.core.q[reg.RDX] = 0x60
        rig.run()
        assert rig.core.q[reg.RBX] & 0xFF == 0xFF
        assert rig.handler.traps == [(13, 0, False, CODE + 10)]
    with Rig("in al, dx") as rig:
        rig.core.open_ports(True)
        rig.core.switch_bank(rig.tables.root, 1)
        rig.run()
        assert rig.handler.traps == [(13, 0, False, CODE)]


@pytest.mark.parametrize(("cpl", "answered"), [(1, True), (3, False)])
def test_open_ports_of_a_32_bit_guest_answer_ring_1_only(cpl: int, answered: bool) -> None:
    with Rig(asm("in al, 0x60\nint 0x82", bits=32)) as rig:
        tables = Tables(rig.machine, 0x140000, pae=True)
        tables.map(CODE, 0x200000)
        core = rig.core
        core.open_ports(True)
        core.set_mode(long=False, cpl=cpl)
        core.set_cs(0xE018 | cpl, 0, 0xFFFF_FFFF, 0x00C0_9B00 | cpl << 13)
        core.load_root(tables.root)
        core.q[reg.RIP] = CODE
        rig.run()
        assert rig.handler.traps == [(0x82, 0, True, CODE + 4) if answered else (13, 0, False, CODE)]


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
@pytest.mark.parametrize("instruction", ["syscall", "rdtsc"])
def test_place_and_flags_are_known_in_the_middle_of_a_block(instruction: str, engine: EngineOptions) -> None:
    """Also where the flags were not yet computed, and came to the block from the one before."""
    code = f"sub ebx, ebx\njmp x\nx: {instruction}\nsetz sil\nadd ebx, -1\n{instruction}\nsets dil\nint 0x90"
    with Rig(code, engine=engine) as rig:
        seen: list[tuple[int, int]] = []

        def look(core: Core) -> None:
            seen.append((core.q[reg.RIP] - CODE, core.q[reg.R11] & reg.FLAGS_ARITHMETIC))

        rig.handler.on["syscall"] = look
        rig.run()
        assert (rig.core.q[reg.RSI] & 0xFF, rig.core.q[reg.RDI] & 0xFF) == (1, 1)
        assert seen in ([], [(6, reg.FLAG_ZF | reg.FLAG_PF), (15, reg.FLAG_SF | reg.FLAG_PF)])
        assert bool(seen) is (instruction == "syscall")


def test_syscall_sets_rcx_and_r11() -> None:
    with Rig("cmp eax, eax\nsyscall") as rig:
        rig.run()
        q = rig.core.q
        assert q[reg.RCX] == CODE + 4
        assert q[reg.R11] == rig.core.eflags() == reg.FLAG_FIXED | reg.FLAG_IF | reg.FLAG_ZF | reg.FLAG_PF
