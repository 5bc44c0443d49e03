"""Opening what the user named: a format, a path, and whether changes go to an overlay. Nothing is ever
probed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .medium import Medium, MediumError
from .overlay import Overlay
from .qcow2 import Qcow2
from .raw import RawFile

FORMATS: Final = ("raw", "qcow2")
"""What a format may be. A sparse image is a raw one."""


def open_medium(
    format_name: str, path: str | Path, *, read_only: bool = False, snapshot: bool = False,
    overlay: str | Path | None = None,
) -> Medium:
    """`snapshot`: changes are thrown away with the process; `overlay`: they are in that file, which is made
    when there is none. With either the image itself is only read. MediumError for what cannot be opened.
    """
    if format_name not in FORMATS:
        raise MediumError(f"There is no disk format {format_name!r}: there are {', '.join(FORMATS)}.")
    if snapshot and overlay is not None:
        raise MediumError("A disk's changes are either thrown away or kept in an overlay.")
    layered = not read_only and (snapshot or overlay is not None)
    if format_name == "raw":
        base: Medium = RawFile.open(path, read_only or layered)
    elif read_only or layered:
        base = Qcow2.open(path)
    else:
        raise MediumError(f"The qcow2 image {path} can only be read: use it with a snapshot or an overlay.")
    if not layered:
        return base
    try:
        if overlay is None:
            return Overlay.temporary(base)
        return Overlay.open(overlay, base) if Path(overlay).exists() else Overlay.create(overlay, base)
    except MediumError:
        base.close()
        raise
