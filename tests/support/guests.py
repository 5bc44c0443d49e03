"""Real guests for tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import guests_cache


def require_guest(name: str) -> Path:
    """The path of a fetched guest; skips the test where it is missing, and fails it under CI."""
    path = guests_cache.guest_path(name)
    if path is not None:
        return path
    reason = f"{name} has not been fetched: run `make fetch`"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
