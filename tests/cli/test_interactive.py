"""`xenpy boot` on a terminal: the keyboard is the guest's, and the terminal comes back as it was."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli import kernels

LIMIT_S = 60.0
IN_A_WINDOW = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-W", "error", "-m", "xenpy", *sys.argv[1:]])
"""


class Window:
    """A terminal window with the command in it, as its session's foreground job."""

    def __init__(self, *arguments: object) -> None:
        self.user, program = pty.openpty()
        self.modes = termios.tcgetattr(program)
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_WINDOW, *map(str, arguments)],
            stdin=program, stdout=program, stderr=program)
        self.program = program
        self.shown = b""

    def read_until(self, text: bytes) -> None:
        """Wait until the window shows the text."""
        until = time.monotonic() + LIMIT_S
        while text not in self.shown:
            assert time.monotonic() < until, self.shown.decode()
            if select.select([self.user], [], [], 0.1)[0]:
                self.shown += os.read(self.user, 65536)
            else:
                assert self.process.poll() is None, self.shown.decode()

    def press(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def end(self) -> int:
        """The command's exit status; its terminal is as it was before."""
        status = self.process.wait(LIMIT_S)
        while select.select([self.user], [], [], 0)[0]:
            self.shown += os.read(self.user, 65536)
        assert termios.tcgetattr(self.program) == self.modes
        assert b"Traceback" not in self.shown
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.user)
        os.close(self.program)


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Callable[..., Window]]:
    """Opens a window with a kernel booting in it."""
    opened: list[Window] = []

    def open_window(kernel: bytes, *arguments: object) -> Window:
        path = tmp_path / "kernel"
        path.write_bytes(kernel)
        opened.append(Window("boot", path, *arguments))
        return opened[-1]

    yield open_window
    for each in opened:
        each.close()


Open = Callable[..., Window]


def test_a_conversation(window: Open) -> None:
    screen = window(kernels.echo())
    screen.read_until(b"q ends\n")
    screen.press(b"hi\r")
    screen.read_until(b"hi\n")
    screen.press(b"q")
    screen.read_until(kernels.FAREWELL.encode())
    assert screen.end() == 0


def test_ctrl_c_is_the_guests_and_the_escape_key_detaches(window: Open) -> None:
    screen = window(kernels.echo())
    screen.read_until(b"q ends\n")
    screen.press(b"a\x03b\r")
    screen.read_until(b"a\x03b\n")
    screen.press(b"\x1d")
    assert screen.end() == 0
    assert b"detached" in screen.shown


@pytest.mark.parametrize("kernel", [kernels.spin_forever, kernels.sleep_forever])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_give_the_terminal_back(window: Open, kernel: Callable[[], bytes], number: int,
                                        status: int) -> None:
    screen = window(kernel())
    screen.read_until(b"ing\n")
    screen.process.send_signal(number)
    assert screen.end() == status


def test_a_sleeping_guest_can_be_left(window: Open) -> None:
    screen = window(kernels.sleep_forever())
    screen.read_until(b"sleeping\n")
    screen.press(b"\x1d")
    assert screen.end() == 0


def test_limits_hold_here_too(window: Open) -> None:
    screen = window(kernels.sleep_forever(), "--within", "0.2")
    assert screen.end() == 3
    assert b"--within is over" in screen.shown
    screen = window(kernels.spin_forever(), "--wall", "0.2")
    assert screen.end() == 3


def test_a_crash_gives_the_terminal_back(window: Open) -> None:
    screen = window(kernels.wild_jump())
    assert screen.end() == 1
    assert b"crashed" in screen.shown


def test_input_means_no_keyboard(window: Open) -> None:
    screen = window(kernels.echo(), "--input", r"q\c")
    assert screen.end() == 0
    assert b"ctrl-]" not in screen.shown
