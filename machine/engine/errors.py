"""What the engine can refuse or report."""

from __future__ import annotations

SUPPORTED_BUILDS = ("unicorn 2.1.4 from PyPI, manylinux x86-64",)


class UnsupportedEngine(RuntimeError):
    """The loaded Unicorn library does not have the private layout this machine is built on."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}. Supported builds: {', '.join(SUPPORTED_BUILDS)}")


class EngineError(RuntimeError):
    """Emulation ended with an error of Unicorn's own (`code`, a uc_err), at `rip` on core `core`."""

    def __init__(self, code: int, core: int, rip: int) -> None:
        super().__init__(f"emulation error {code} on core {core} at rip {rip:#x}")
        self.code, self.core, self.rip = code, core, rip
