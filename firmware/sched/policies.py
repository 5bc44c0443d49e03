"""Every scheduling policy there is: importing this registers them."""

from firmware.sched import atropos, bvt, credit, credit2, gang, roundrobin, rtds

__all__ = ["atropos", "bvt", "credit", "credit2", "gang", "roundrobin", "rtds"]
