"""A guest's console as tests and scripts use it: expect, send, read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpy.errors import ExpectTimeoutError
from xenpy.watch import ConsoleText, Watch, compile_pattern

if TYPE_CHECKING:
    from firmware.console import DomainConsole
    from xenpy.system import Outcome

Runner = Callable[[Callable[[], bool], "float | None", "float | None"], "Outcome"]
"""Runs the system until a condition, within virtual seconds, for host seconds."""

EXPECT_WITHIN: Final = 60.0
"""Virtual seconds that `Console.expect` gives a guest when the caller names none."""
LOG_LIMIT: Final = 64 << 20
"""When the log has grown to this many bytes its older half is dropped: a guest can say anything for ever."""


class Console:
    """A guest's console. Text is searched from where the last match ended, as a person reads on."""

    __slots__ = ("_device", "_owner", "_run", "_taps", "_text", "said")

    def __init__(self, device: DomainConsole, owner: str, run: Runner) -> None:
        self._device = device
        self._owner = owner
        self._run = run
        self._text = ConsoleText()
        self._taps: list[Callable[[bytes], None]] = []
        self.said = 0
        """Bytes it has said since the beginning."""
        device.on_output = self._heard

    @property
    def text(self) -> str:
        """What it has said, as text with plain line ends; of a long run the last megabyte."""
        return self._text.text

    @property
    def log(self) -> bytes:
        """What it has said, byte for byte; of a flood the last 32 MiB at least."""
        return bytes(self._device.output)

    @property
    def unread(self) -> int:
        """Bytes sent that the guest has not read yet."""
        return len(self._device.pending_input) + self._device.unread

    def tap(self, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with every chunk the guest says, as it says it. It must not raise."""
        self._taps.append(listener)

    def send(self, keys: str | bytes) -> None:
        """Type `keys` (text as UTF-8). The guest reads them when it runs; what its ring cannot take waits."""
        self._device.feed(keys.encode() if isinstance(keys, str) else keys)

    def refill(self) -> None:
        """Move what waits into the guest's ring, for guests that read without saying so."""
        if self._device.pending_input:
            self._device.serve()

    def watch(self, pattern: str | re.Pattern[str]) -> Watch:
        """A condition for `System.run`: true when `pattern` has matched."""
        return Watch(self._text, compile_pattern(pattern) if isinstance(pattern, str) else pattern)

    def expect(self, pattern: str | re.Pattern[str], within: float = EXPECT_WITHIN,
               wall: float | None = None) -> re.Match[str]:
        """Run until the console says `pattern`; the match. `^` and `$` are the ends of lines.

        `within` is in virtual seconds, `wall` in the host's. Raises ExpectTimeoutError, with the end of the
        console, when the time has passed or nothing more can come.
        """
        watch = self.watch(pattern)
        if not watch():
            outcome = self._run(watch, within, wall)
            watch()
        if watch.match is None:
            shown = pattern if isinstance(pattern, str) else pattern.pattern
            said = f"{self._owner} did not say {shown!r}: {outcome}."
            raise ExpectTimeoutError(f"{said} Its console ends with:\n{self._text.tail()}")
        return watch.match

    def _heard(self, data: bytes) -> None:
        self.said += len(data)
        if len(self._device.output) > LOG_LIMIT:
            del self._device.output[:LOG_LIMIT >> 1]
        self._text.append(data)
        for listener in self._taps:
            listener(data)
