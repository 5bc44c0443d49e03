"""The hardware: cores, memory, TLBs, clock, topology. Knows nothing of Xen."""

from .clock import Clock, Event
from .core import Core, StopReason, TrapHandler
from .engine import EngineError, EngineOptions, UnsupportedEngine
from .machine import Counters, Machine, MachineConfig, RunEnd
from .memory import MachineMemory
from .topology import Topology

__all__ = [
    "Clock",
    "Core",
    "Counters",
    "EngineError",
    "EngineOptions",
    "Event",
    "Machine",
    "MachineConfig",
    "MachineMemory",
    "RunEnd",
    "StopReason",
    "Topology",
    "TrapHandler",
    "UnsupportedEngine",
]
