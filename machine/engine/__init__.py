"""Everything that knows Unicorn: private layout, symbols, native hooks. Nothing else imports unicorn."""

from .cpu import CpuState
from .engine import Engine, EngineOptions
from .errors import EngineError, UnsupportedEngine
from .layout import MAX_CHUNK, MMU_KERNEL, MMU_PARKED, MMU_USER, UNIT_NS, CellWord, Layout, SharedWord

__all__ = [
    "MAX_CHUNK",
    "MMU_KERNEL",
    "MMU_PARKED",
    "MMU_USER",
    "UNIT_NS",
    "CellWord",
    "CpuState",
    "Engine",
    "EngineError",
    "EngineOptions",
    "Layout",
    "SharedWord",
    "UnsupportedEngine",
]
