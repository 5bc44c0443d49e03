"""The errors xenstore answers: they travel by name, not by number (`xsd_errors` in io/xs_wire.h)."""

from __future__ import annotations

from typing import Literal

ErrorName = Literal[
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO", "ENOTEMPTY",
    "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
]


class StoreError(Exception):
    """A request that failed; `name` is what the client is told."""

    def __init__(self, name: ErrorName) -> None:
        super().__init__(name)
        self.name: ErrorName = name
