"""The pytest fixture `machine`: systems that a test builds and that are freed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xenpy.system import System


@pytest.fixture
def machine() -> Iterator[Callable[..., System]]:
    """A function that builds a `System` from its own arguments:
    `machine(cpus=2).add_domain("builtin:hello")`.
    """
    from xenpy.system import System

    with ExitStack() as stack:
        def build(**options: Any) -> System:
            return stack.enter_context(System(**options))

        yield build
