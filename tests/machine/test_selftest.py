"""A library that is laid out differently is refused, by name, before anything runs on it."""

from __future__ import annotations

import pytest

from machine import EngineOptions, Machine, MachineConfig, RunEnd, UnsupportedEngine
from machine.engine import Layout
from machine.engine import engine as engine_module
from tests.machine.rig import Rig


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_slot": 0x1C0},
        {"cpu_slot": 0x0},
        {"owner": 0x81A0},
        {"env": 0x8A58},
        {"icount": 0x8A48},
        {"cpu_size": 0xA7D8 // 2},
        {"opaque": 0x128},
        {"bank_tag": 0x81A8},
        {"tlb_fast": 0x8A50 - 80},
        {"tlb_desc": 0x8A50 - 2168},
        {"tlb": 0x8A50 - 2184},
        {"tlb_used": 24},
        {"tlb_paddr": 16},
        {"tlb_code": 8},
        {"tcg_buffer": 0xA0},
        {"tcg_buffer": 0xB0},
        {"tcg_invalidations": 0xD0},
        {"tcg_flushes": 0x98D8},
        {"tlb_victims": 40},
        {"tlb_victims_size": 448},
        {"tlb_victims_size": 520},
        {"features_8000_0001_edx": 5684},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_layout_is_refused(change: dict[str, int]) -> None:
    layout = Layout().replaced(**change)
    with pytest.raises(UnsupportedEngine, match=r"Supported builds: unicorn 2\.1\.4.*manylinux"):
        Machine(MachineConfig(engine=EngineOptions(layout=layout)))
    with Rig("int 0x90") as rig:
        assert rig.run() is RunEnd.IDLE


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "SUPPORTED_VERSION", (2, 1, 3))
    with pytest.raises(UnsupportedEngine, match=r"unicorn 2\.1\.4"):
        Machine(MachineConfig())
