"""Traps: system calls, exceptions, bounce frames, iret, emulated instructions."""
