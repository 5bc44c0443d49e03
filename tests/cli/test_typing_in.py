from __future__ import annotations

import pytest

from xenpy.errors import BadInputError
from xenpy.typing_in import IDLE_LOOKS, SILENT_LOOKS, UNREAD_LOOKS, Typist, keys_of


class Teletype:
    """A guest by hand: what it says, whether it sleeps, what was typed."""

    def __init__(self) -> None:
        self.said = 0
        self.asleep = True
        self.waiting = b""
        self.typed: list[bytes] = []

    @property
    def unread(self) -> int:
        return len(self.waiting)

    def send(self, keys: bytes) -> None:
        self.typed.append(keys)
        self.waiting = keys

    def typist(self, *lines: bytes) -> Typist:
        return Typist(self, lambda: self.asleep, lines)


@pytest.mark.parametrize(("text", "keys"), [
    ("ls", b"ls\n"),
    ("", b"\n"),
    (r"a\nb", b"a\nb\n"),
    (r"\x03\c", b"\x03"),
    (r"\e[B\r\c", b"\x1b[B\r"),
    (r"back\\c", b"back\\c\n"),
    (r"back\\\c", b"back\\"),
    (r"\0\t\b", b"\0\t\b\n"),
    ("grün", "grün\n".encode()),
    ("\udcff", b"\xff\n"),
])
def test_keys(text: str, keys: bytes) -> None:
    assert keys_of(text) == keys


@pytest.mark.parametrize("text", [r"\q", r"\x4", r"\xzz", "end\\", r"a\cb"])
def test_unknown_escapes(text: str) -> None:
    with pytest.raises(BadInputError, match="is no escape"):
        keys_of(text)


def test_types_when_the_guest_waits() -> None:
    guest = Teletype()
    typist = guest.typist(b"one\n", b"two\n")
    for _ in range(3 * SILENT_LOOKS):
        typist.look()
    assert not guest.typed  # it has not said a word yet

    guest.said = 10
    for _ in range(IDLE_LOOKS):
        assert typist.look()
        assert not guest.typed
    assert typist.look()
    assert guest.typed == [b"one\n"]

    for _ in range(3 * SILENT_LOOKS):
        typist.look()
    assert guest.typed == [b"one\n"]  # the first is not read yet

    guest.waiting = b""
    for _ in range(IDLE_LOOKS - 1):
        typist.look()
    guest.said += 1  # an answer: it starts over
    for _ in range(IDLE_LOOKS):
        typist.look()
    assert guest.typed == [b"one\n"]
    assert not typist.look()
    assert guest.typed == [b"one\n", b"two\n"]
    assert typist.left == 0


def test_a_busy_guest_gets_its_line_after_a_long_silence() -> None:
    guest = Teletype()
    guest.said, guest.asleep = 1, False
    typist = guest.typist(b"x")
    looks = 0
    while typist.look():
        looks += 1
    assert looks == SILENT_LOOKS
    assert guest.typed == [b"x"]


def test_a_guest_that_wakes_now_and_then_is_not_waiting() -> None:
    guest = Teletype()
    guest.said = 1
    typist = guest.typist(b"x")
    for look in range(SILENT_LOOKS):
        guest.asleep = look % (IDLE_LOOKS - 1) != 0
        typist.look()
    assert not guest.typed


def test_gives_up_on_a_guest_that_sleeps_on_its_input() -> None:
    guest = Teletype()
    guest.said, guest.waiting = 1, b"never read"
    typist = guest.typist(b"x")
    looks = 0
    while typist.look():
        looks += 1
    assert looks == UNREAD_LOOKS
    assert typist.left == 1
    assert not guest.typed
