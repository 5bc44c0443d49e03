"""Where images and RAM disks come from: files, and the guests that come along."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from firmware.domain.image import ImageError, KernelImage, load_image, parse_image
from xenpy.errors import BadInputError, ExitStatus, reason_of
from xenpy.output import show

BUILTIN: Final = "builtin:"


def show_builtin() -> int:
    """Print name and one line about each guest that comes along; the exit status."""
    from guests.registry import GUESTS

    show("".join(f"{name:<10} {guest.description}\n" for name, guest in GUESTS.items()))
    return ExitStatus.DONE


def load(image: str | Path | bytes) -> KernelImage:
    """The kernel in a file, in `builtin:NAME`, or in bytes. Raises BadInputError, which names it."""
    text = "the image" if isinstance(image, bytes) else str(image)
    try:
        if isinstance(image, bytes):
            return parse_image(image, text)
        if not text.startswith(BUILTIN):
            return load_image(image)
        return parse_image(_built(text), text)
    except ImageError as error:
        raise BadInputError(str(error)) from error


def _built(text: str) -> bytes:
    from guests.registry import GUESTS

    guest = GUESTS.get(text.removeprefix(BUILTIN))
    if guest is None:
        raise BadInputError(f"{text}: no such guest comes along; there are {', '.join(GUESTS)}")
    return guest.build()


def read(path: Path, what: str, most: int) -> bytes:
    """A file of at most `most` bytes. BadInputError names the file, what it is for, and what is wrong."""
    try:
        with path.open("rb") as file:
            if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                raise BadInputError(f"{path}: it is a folder: give the {what} itself")
            data = file.read(most + 1)
    except IsADirectoryError as error:
        raise BadInputError(f"{path}: it is a folder: give the {what} itself") from error
    except (OSError, ValueError) as error:
        why = reason_of(error) if isinstance(error, OSError) else str(error)
        raise BadInputError(f"{path}: {why}; the {what} must be a file that can be read") from error
    if len(data) > most:
        raise BadInputError(f"{path}: it is larger than the {most >> 20} MiB that the {what} may have")
    if not data:
        raise BadInputError(f"{path}: it is empty: give a {what}")
    return data
