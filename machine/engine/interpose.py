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
_LOOKUP = "helper_lookup_tb_ptr_x86_64"


class Interposer:
    """The process-wide replacements. `missing` says why there are none, or is empty."""

    def __init__(self, library: Library, layout: Layout) -> None:
        self.library = library
        self.stubs = Stubs(library, layout)
        slots = find_slots(library, (*_ALWAYS, _CHECK, _LOOKUP))
        self.missing = ""
        for name in _ALWAYS:
            if len(slots[name]) != 1:
                self.missing = f"{len(slots[name])} relocation slots for {name}, not 1"
        for name in (_CHECK, _LOOKUP):
            kinds = sorted(kind for _, kind in slots[name])
            if len(kinds) != 2 or kinds[0] != R_X86_64_64:
                self.missing = f"relocation slots of types {kinds} for {name}"
        if self.missing:
            return
        self._hooks = {name: Slots([address for address, _ in slots[name]]) for name in _ALWAYS}
        self._table = _slots(slots, table=True)
        self._called = _slots(slots, table=False)

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

    def _targets(self, stub: str) -> tuple[int, int]:
        return self.stubs.entry[stub], self.stubs.entry["lookup"]

    def translating(self, stub: str) -> _Translating:
        """While inside, new translations enter their blocks through this stub."""
        return _Translating(self._called, self._targets(stub))

    def opening(self, stub: str) -> _Opening:
        """While inside, a new Uc learns this stub as its block-entry helper."""
        return _Opening(self._table, self._called, self._targets(stub))


class _Translating:
    __slots__ = ("_slots", "_targets")

    def __init__(self, slots: tuple[Slots, Slots], targets: tuple[int, int]) -> None:
        self._slots, self._targets = slots, targets

    def __enter__(self) -> None:
        for slots, target in zip(self._slots, self._targets, strict=True):
            slots.set(target)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slots in self._slots:
            slots.restore()


class _Opening(_Translating):
    __slots__ = ("_table",)

    def __init__(
        self, table: tuple[Slots, Slots], called: tuple[Slots, Slots], targets: tuple[int, int]
    ) -> None:
        super().__init__(called, targets)
        self._table = table

    def __enter__(self) -> None:
        super().__enter__()
        for slots, target in zip(self._table, self._targets, strict=True):
            slots.set(target)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slots in self._table:
            slots.restore()
        super().__exit__(kind, value, trace)


def _slots(found: dict[str, list[tuple[int, int]]], table: bool) -> tuple[Slots, Slots]:
    """Of the two helpers that blocks call: where a new Uc, or else the translator, reads their addresses."""
    check, lookup = (
        Slots([address for address, kind in found[name] if (kind == R_X86_64_64) is table])
        for name in (_CHECK, _LOOKUP)
    )
    return check, lookup


_interposers: dict[Layout, Interposer] = {}


def interposer(library: Library, layout: Layout) -> Interposer:
    """The one interposer of this process for a layout."""
    if layout not in _interposers:
        _interposers[layout] = Interposer(library, layout)
    return _interposers[layout]
