"""Every scheduling policy there is: importing this registers them."""

from firmware.sched import roundrobin

__all__ = ["roundrobin"]
