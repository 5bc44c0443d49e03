from __future__ import annotations

import os
import pty
import termios
from collections.abc import Iterator

import pytest

from xenpy.terminal import Pacer, Terminal


@pytest.fixture
def line() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: the user's end and the program's."""
    user, program = pty.openpty()
    yield user, program
    for end in (user, program):
        os.close(end)


def test_raw_and_back(line: tuple[int, int]) -> None:
    _, program = line
    before = termios.tcgetattr(program)
    with Terminal(program) as terminal:
        modes = termios.tcgetattr(program)
        assert not modes[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        assert not modes[1] & termios.OPOST
        states = [terminal.raw]
    states.append(terminal.raw)
    assert states == [True, False]
    assert termios.tcgetattr(program) == before
    terminal.restore()
    assert termios.tcgetattr(program) == before


def test_back_after_an_error(line: tuple[int, int]) -> None:
    _, program = line
    before = termios.tcgetattr(program)
    with pytest.raises(ValueError, match="invalid literal"), Terminal(program):
        int("no number")
    assert termios.tcgetattr(program) == before


def test_keys_go_through_as_they_are(line: tuple[int, int]) -> None:
    user, program = line
    with Terminal(program) as terminal:
        assert terminal.keys() == b""
        os.write(user, b"\x03\x1aa\r")
        assert terminal.keys(5.0) == b"\x03\x1aa\r"
        assert not terminal.detached


def test_escape_detaches(line: tuple[int, int]) -> None:
    user, program = line
    with Terminal(program) as terminal:
        os.write(user, b"ls\x1dmore")
        assert terminal.keys(5.0) == b"ls"
        assert terminal.detached
        assert terminal.keys() == b""


def test_a_hang_up_detaches() -> None:
    user, program = pty.openpty()
    with Terminal(program) as terminal:
        os.close(user)
        assert terminal.keys(5.0) == b""
        assert terminal.detached
    os.close(program)


def test_idle_time_is_paced_and_work_is_not() -> None:
    clock = [100.0]
    pacer = Pacer(0, 0, lambda: clock[0])
    clock[0] += 0.1
    assert pacer.owed(1_000_000_000, 1_000_000_000) == 0  # one second of work in 0.1: no waiting
    clock[0] += 0.25
    assert pacer.owed(2_000_000_000, 1_000_000_000) == pytest.approx(0.75)  # one idle second
    clock[0] += 0.75
    assert pacer.owed(2_000_000_000, 1_000_000_000) == 0
    clock[0] += 60
    assert pacer.owed(2_010_000_000, 1_000_000_000) == 0  # time spent elsewhere is no credit
    clock[0] += 0.01
    assert pacer.owed(2_030_000_000, 1_000_000_000) == pytest.approx(0.01)
