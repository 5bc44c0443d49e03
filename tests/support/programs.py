"""Programs of the host that tests need."""

from __future__ import annotations

import os

import pytest

from tools import disk_image


def require_e2fsprogs() -> dict[str, str]:
    """The paths of mke2fs, e2fsck and debugfs by name; skips the test without them, and fails it under CI."""
    found = {name: disk_image.program(name) for name in ("mke2fs", "e2fsck", "debugfs")}
    paths = {name: path for name, path in found.items() if path is not None}
    if len(paths) == len(found):
        return paths
    reason = f"{', '.join(sorted(found.keys() - paths.keys()))} of e2fsprogs not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
