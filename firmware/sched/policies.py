"""Every scheduling policy there is: importing this registers them."""

from firmware.sched import bvt, roundrobin

__all__ = ["bvt", "roundrobin"]
