"""Every disk scheduling policy there is: importing this registers them."""

from firmware.disk import batch, cello, fifo

__all__ = ["batch", "cello", "fifo"]
