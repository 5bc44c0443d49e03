"""Hooks into emulation: Python callbacks for what the firmware handles, native stubs for the rest.

Callbacks are plain ctypes functions. None lets an exception out (that would be lost in C): it is kept in
`Engine.failure`, the slice ends, and `Machine.run` raises it. None longjmps: what raises into the guest is a
native stub.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from machine import registers as reg

from . import library as lib
from .layout import EXCEPTION_NS

if TYPE_CHECKING:
    from .engine import Engine

_NO_EXCEPTION = 0xFFFF_FFFF
_WHOLE_SPACE = (1, 0)  # begin > end: a hook everywhere

_OnInterrupt = ctypes.PYFUNCTYPE(None, ctypes.c_uint32)
_OnSyscall = ctypes.PYFUNCTYPE(None)
_OnInvalid = ctypes.PYFUNCTYPE(ctypes.c_bool)
_OnCpuid = ctypes.PYFUNCTYPE(ctypes.c_int)


class Handler(Protocol):
    """What traps are reported to; see machine.core.TrapHandler."""

    def syscall(self, core: Any) -> None: ...

    def exception(self, core: Any, vector: int, error: int, software: bool) -> None: ...

    def cpuid(self, core: Any) -> None: ...


class Hooks:
    """All hooks of one engine. `profile(on)` exchanges the Python callbacks for ones that keep their time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._uc = engine.uc
        self._add = engine.library.dll.uc_hook_add
        self._python: list[tuple[Any, int]] = []
        self._install_native()
        self._install_python(timed=False)

    def profile(self, on: bool) -> None:
        for _, handle in self._python:
            self._engine.library.dll.uc_hook_del(self._uc, handle)
        self._python.clear()
        self._install_python(timed=on)

    def _hook(
        self, kind: int, function: Any, *instruction: int, span: tuple[int, int] = _WHOLE_SPACE, data: int = 0
    ) -> int:
        handle = ctypes.c_size_t()
        code = self._add(
            ctypes.c_void_p(self._uc),
            ctypes.byref(handle),
            ctypes.c_int(kind),
            function if not isinstance(function, int) else ctypes.c_void_p(function),
            ctypes.c_void_p(data),
            ctypes.c_uint64(span[0]),
            ctypes.c_uint64(span[1]),
            *[ctypes.c_int(number) for number in instruction],
        )
        if code:
            raise RuntimeError(f"uc_hook_add: error {code}")
        return handle.value

    def _install_native(self) -> None:
        engine = self._engine
        entry = engine.stubs.entry
        self._hook(lib.HOOK_INSN, entry["rdtsc"], lib.INS_RDTSC)
        self._hook(lib.HOOK_INSN, entry["rdtscp"], lib.INS_RDTSCP)
        self._hook(lib.HOOK_INSN, entry["port"], lib.INS_IN)
        self._hook(lib.HOOK_INSN, entry["port"], lib.INS_OUT)
        if not engine.lean:
            self._hook(lib.HOOK_BLOCK, entry["block_hook"])
        if engine.watch_stores:
            self._hook(lib.HOOK_MEM_WRITE_PROT, entry["refuse"], span=(0, engine.memory_size - 1))

    def _install_python(self, timed: bool) -> None:
        engine = self._engine
        emu_stop, uc = engine.library.dll.uc_emu_stop, ctypes.c_void_p(self._uc)

        def on_interrupt(vector: int) -> None:
            core = engine.running
            d = core.d
            try:
                core.handler.exception(core, vector, d[reg.ERROR_CODE], d[reg.EXCEPTION_IS_INT] != 0)
            except BaseException as failure:  # noqa: BLE001
                engine.failed(failure)
            if core.spent:  # a fetch that faults comes before any block could see that
                emu_stop(uc)

        def on_syscall() -> None:
            core = engine.running
            try:
                core.handler.syscall(core)
            except BaseException as failure:  # noqa: BLE001
                engine.failed(failure)

        def on_invalid() -> bool:
            core = engine.running
            core.d[reg.OLD_EXCEPTION] = _NO_EXCEPTION
            core.charge(EXCEPTION_NS)  # what the stub of the other exceptions takes
            try:
                core.handler.exception(core, reg.VECTOR_UD, 0, False)
            except BaseException as failure:  # noqa: BLE001
                engine.failed(failure)
            return True

        def on_cpuid() -> int:
            core = engine.running
            try:
                core.handler.cpuid(core)
            except BaseException as failure:  # noqa: BLE001
                engine.failed(failure)
            return 1

        def kept(function: Callable[..., Any]) -> Callable[..., Any]:
            if not timed:
                return function

            def measured(*arguments: Any) -> Any:
                begin = perf_counter_ns()
                result = function(*arguments)
                engine.callback_ns += perf_counter_ns() - begin
                return result

            return measured

        entry = engine.stubs.entry
        for kind, prototype, function, instruction, stub in (
            (lib.HOOK_INTR, _OnInterrupt, on_interrupt, (), entry["interrupt"]),
            (lib.HOOK_INSN_INVALID, _OnInvalid, on_invalid, (), 0),
            (lib.HOOK_INSN, _OnSyscall, on_syscall, (lib.INS_SYSCALL,), entry["syscall"]),
            (lib.HOOK_INSN, _OnCpuid, on_cpuid, (lib.INS_CPUID,), 0),
        ):
            callback = prototype(kept(function))
            address = ctypes.cast(callback, ctypes.c_void_p).value or 0
            handle = self._hook(kind, stub or callback, *instruction, data=address if stub else 0)
            self._python.append((callback, handle))
