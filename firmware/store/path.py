"""Paths of the store: what is valid, what a relative one means, who is whose child
(docs/misc/xenstore.txt).
"""

from __future__ import annotations

import re
from typing import Final

from firmware.abi import io_xs_wire as xs

SPECIAL: Final = "@"
"""Watch paths that start with this name an event of the store itself."""

_NODE: Final = re.compile(r"/|(?:/[0-9A-Za-z_@-]+)+")
_LOCAL: Final = re.compile(r"/local/domain/[0-9]{1,5}/")


def home(domid: int) -> str:
    """The path a domain's relative paths start from."""
    return f"/local/domain/{domid}"


def absolute(path: str, base: str) -> str:
    """`path` as seen from `base`; absolute and special paths stay as they are."""
    return path if path[:1] in ("/", SPECIAL) else f"{base}/{path}"


def valid(path: str, limit: int = xs.XENSTORE_ABS_PATH_MAX) -> bool:
    """True for an absolute node path of legal characters; `limit` counts what follows a
    `/local/domain/N/`.
    """
    if len(path) > xs.XENSTORE_ABS_PATH_MAX or _NODE.fullmatch(path) is None:
        return False
    if len(path) <= limit:
        return True
    local = _LOCAL.match(path)
    return local is not None and len(path) - local.end() <= limit


def parent(path: str) -> str:
    """The path one level up; the root is its own parent."""
    return path[: path.rfind("/")] or "/"


def leaf(path: str) -> str:
    """The last component."""
    return path[path.rfind("/") + 1 :]


def join(base: str, name: str) -> str:
    """The path of the child `name` of `base`."""
    return f"/{name}" if base == "/" else f"{base}/{name}"


def is_child(path: str, ancestor: str) -> bool:
    """True when `path` is `ancestor` or lies below it."""
    if ancestor == "/":
        return True
    return path.startswith(ancestor) and path[len(ancestor) : len(ancestor) + 1] in ("", "/")
