"""Functions of the library that are replaced while machines exist, by their relocation slots.

The replacements look at the CPUState's opaque pointer, so other Unicorn objects of the process keep the
original behaviour; the block-entry check has no such test and is therefore in place only while a machine is
being opened or runs.
"""

from __future__ import annotations

from types import TracebackType

from .layout import Layout
from .library import Library
from .loader import R_X86_64_64, Slots, find_slots
from .stubs import Stubs

_ALWAYS = {
    "tlb_protect_code_x86_64": "protect",
    "tlb_unprotect_code_x86_64": "unprotect",
    "tlb_set_dirty_x86_64": "set_dirty",
    "tlb_set_page_with_attrs_x86_64": "set_page",
    "cpu_restore_state_x86_64": "restore_state",
    "gettimeofday": "time_of_day",
}
_CHECK = "helper_check_exit_request_x86_64"


class Interposer:
    """The process-wide replacements. `missing` says why there are none, or is empty."""

    def __init__(self, library: Library, layout: Layout) -> None:
        self.library = library
        self.stubs = Stubs(library, layout)
        slots = find_slots(library, (*_ALWAYS, _CHECK))
        self.missing = ""
        for name in _ALWAYS:
            if len(slots[name]) != 1:
                self.missing = f"{len(slots[name])} relocation slots for {name}, not 1"
        kinds = sorted(kind for _, kind in slots[_CHECK])
        if len(kinds) != 2 or kinds[0] != R_X86_64_64:
            self.missing = f"relocation slots of types {kinds} for {_CHECK}"
        if self.missing:
            return
        self._hooks = {name: Slots([address for address, _ in slots[name]]) for name in _ALWAYS}
        self._table = Slots([address for address, kind in slots[_CHECK] if kind == R_X86_64_64])
        self._called = Slots([address for address, kind in slots[_CHECK] if kind != R_X86_64_64])

    def install(self) -> None:
        """Put the opaque-guarded replacements in place."""
        for name, stub in _ALWAYS.items():
            self._hooks[name].set(self.stubs.entry[stub])

    @property
    def time(self) -> memoryview:
        """One word: what the library's gettimeofday answers, in ns."""
        return self.stubs.time[1:]

    def opened(self, change: int) -> None:
        """Count machines: with none open the library sees host time again."""
        self.stubs.time[0] += change

    def translating(self, stub: str) -> _Translating:
        """While inside, new translations enter their blocks through this stub."""
        return _Translating(self._called, self.stubs.entry[stub])

    def opening(self, stub: str) -> _Opening:
        """While inside, a new Uc learns this stub as its block-entry helper."""
        return _Opening(self._table, self._called, self.stubs.entry[stub])


class _Translating:
    __slots__ = ("_slots", "_target")

    def __init__(self, slots: Slots, target: int) -> None:
        self._slots, self._target = slots, target

    def __enter__(self) -> None:
        self._slots.set(self._target)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slots.restore()


class _Opening(_Translating):
    __slots__ = ("_table",)

    def __init__(self, table: Slots, called: Slots, target: int) -> None:
        super().__init__(called, target)
        self._table = table

    def __enter__(self) -> None:
        super().__enter__()
        self._table.set(self._target)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.restore()
        super().__exit__(kind, value, trace)


_interposers: dict[Layout, Interposer] = {}


def interposer(library: Library, layout: Layout) -> Interposer:
    """The one interposer of this process for a layout."""
    if layout not in _interposers:
        _interposers[layout] = Interposer(library, layout)
    return _interposers[layout]
