"""hello: the smallest guest. One line on the console, then power off."""
from __future__ import annotations

from guests.macros import kernel, line


def build() -> bytes:
    """The image."""
    return kernel(line("Hello from a PV guest"))
