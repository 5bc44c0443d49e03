"""Error numbers and their names."""
from __future__ import annotations

from firmware.abi import errno


def test_names_are_found_by_either_sign() -> None:
    assert errno.name(-22) == errno.name(22) == "EINVAL"


def test_aliases_do_not_hide_the_common_name() -> None:
    assert errno.name(errno.EWOULDBLOCK) == "EAGAIN"
    assert errno.name(errno.EDEADLOCK) == "EDEADLK"


def test_an_unknown_number_is_its_own_name() -> None:
    assert errno.name(-4095) == "-4095"


def test_numbers_are_xens() -> None:
    numbers = {key: value for key, value in vars(errno).items() if isinstance(value, int)}
    assert numbers["ENOSYS"] == 38
    assert numbers["ERESTART"] == 85
    assert len(set(numbers.values())) == len(errno.NAMES)
