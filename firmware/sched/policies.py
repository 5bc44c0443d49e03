"""Every scheduling policy there is: importing this registers them."""

from firmware.sched import bvt, credit, roundrobin

__all__ = ["bvt", "credit", "roundrobin"]
