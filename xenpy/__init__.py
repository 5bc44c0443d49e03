"""A whole x86 machine in which the Xen hypervisor is firmware.

The command is `xenpy.cli`; importing this package loads nothing, so that it starts at once. Scripts and
tests use `System` and what it returns.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what typing has, without loading it
if TYPE_CHECKING:
    from typing import Any

    from xenpy.guest import Guest
    from xenpy.system import Outcome, System

__version__ = "0.1.0"
__all__ = ["Guest", "Outcome", "System", "__version__"]


def __getattr__(name: str) -> Any:
    """The API's names, loaded when first used: the command must start without the machine."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("xenpy.guest" if name == "Guest" else "xenpy.system"), name)
    raise AttributeError(f"module 'xenpy' has no attribute {name!r}")
