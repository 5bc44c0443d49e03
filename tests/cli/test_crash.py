from __future__ import annotations

from dataclasses import replace

from firmware.domain.crash import CrashInfo, RecentCall
from xenpy.crash import render

CRASH = CrashInfo(
    reason="page fault at 0x10 with no handler set",
    vcpu=1,
    virtual_ns=1_234_567_890,
    in_kernel=True,
    registers={"rip": 0xFFFFFFFF81000010, "rsp": 0xFFFFFFFF82003F00, "rax": 0xDEAD, "rbx": 0x10, "cr2": 0x10},
    code=bytes.fromhex("488b03 ffd0 0f0b"),
    stack=(0x1, 0xFFFFFFFF81000123, 0x3),
    recent_calls=(
        RecentCall(1, 0x1000, 2, 0),
        RecentCall(29, 2, 0x7000, -14),
        RecentCall(23, 5, 6, 0),
        RecentCall(50, 1, 2, -38),
    ),
)


def symbol(address: int) -> str | None:
    return f"start_kernel+{address - 0xFFFFFFFF81000000:#x}" if address >> 12 == 0xFFFFFFFF81000 else None


def test_report() -> None:
    assert render(CRASH, "debian", symbol) == """\
guest 'debian' crashed: page fault at 0x10 with no handler set
  vCPU 1, in kernel mode, after 1.234568 s of virtual time
registers
      rax 000000000000dead      rbx 0000000000000010      rsp ffffffff82003f00
      rip ffffffff81000010      cr2 0000000000000010
instruction at 0xffffffff81000010 (start_kernel+0x10)
> ffffffff81000010  48 8b 03                  mov rax, qword ptr [rbx]
  ffffffff81000013  ff d0                     call rax
  ffffffff81000015  0f 0b                     ud2
stack at 0xffffffff82003f00
  +000  0000000000000001 ffffffff81000123 0000000000000003
stack trace (return addresses found on the stack, newest first)
  +008  ffffffff81000123  start_kernel+0x123
last hypercalls, newest last
  mmu_update(0x1000, 0x2, ...) = 0x0
  sched_op(0x2, 0x7000) = -EFAULT
  iret() = 0x0
  hypercall 50(0x1, 0x2) = -ENOSYS"""


def test_the_same_call_again_and_the_last_one() -> None:
    calls = [RecentCall(32, 4, 8, 0)] * 3 + [RecentCall(32, 4, 9, 0), RecentCall(29, 2, 0x7000, None)]
    assert render(replace(CRASH, recent_calls=tuple(calls)), "g").endswith("""\
last hypercalls, newest last
  event_channel_op(0x4, 0x8) = 0x0 (3 times)
  event_channel_op(0x4, 0x9) = 0x0
  sched_op(0x2, 0x7000) ended it""")


def test_a_pointer_to_a_function_is_no_return_address() -> None:
    report = render(replace(CRASH, stack=(0xFFFFFFFF81000000,)), "g", symbol)
    assert "stack trace" not in report


def test_nothing_readable_and_no_symbols() -> None:
    report = render(replace(CRASH, code=b"", stack=(), recent_calls=()), "g")
    assert report.count("the guest's page tables have nothing there") == 2
    assert "stack trace" not in report
    assert "no hypercall was made" in report


def test_bytes_that_are_no_instruction() -> None:
    assert "06  (no instruction)" in render(replace(CRASH, code=b"\x06"), "g")


def test_32_bit() -> None:
    report = render(replace(CRASH, long_mode=False, code=bytes.fromhex("ff10"), stack=(1, 2)), "g")
    assert "call dword ptr [eax]" in report
    assert "  +000  00000001 00000002" in report
