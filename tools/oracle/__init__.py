"""Real Xen as the judge: runs a PV kernel on Xen 4.17 under QEMU and returns what the kernel's console said.

`dom0.run` puts the kernel in dom0's place, which is quick and makes it privileged; `domu.run` starts it as an
unprivileged guest from a Debian dom0. `python -m tools.oracle run IMAGE [--domu]` is the command.
"""
from __future__ import annotations

from tools.oracle.qemu import End, OracleError, Result, missing

__all__ = ["End", "OracleError", "Result", "missing"]
