"""Everything that knows Unicorn: private layout, symbols, native hooks. Nothing else imports unicorn."""

from .cpu import CpuState
from .engine import Engine, EngineOptions
from .errors import EngineError, UnsupportedEngine
from .layout import (
    BLOCK_COUNT,
    BLOCK_EPOCH_SHIFT,
    EXCEPTION_NS,
    MAX_CHUNK,
    MMU_KERNEL,
    MMU_PARKED,
    MMU_USER,
    RATE_SHIFT,
    TSC_NS,
    UNIT_NS,
    CellWord,
    Layout,
    SharedWord,
)

__all__ = [
    "BLOCK_COUNT",
    "BLOCK_EPOCH_SHIFT",
    "EXCEPTION_NS",
    "MAX_CHUNK",
    "MMU_KERNEL",
    "MMU_PARKED",
    "MMU_USER",
    "RATE_SHIFT",
    "TSC_NS",
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
