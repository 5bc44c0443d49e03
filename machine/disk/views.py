"""Parts of scattered memory."""

from __future__ import annotations

from .medium import Views


def cut(views: Views, begin: int, length: int) -> list[memoryview]:
    """`length` bytes of the views from byte `begin` on, as views of the same memory."""
    part = []
    for view in views:
        size = view.nbytes
        if begin < size:
            piece = view[begin : begin + length]
            part.append(piece)
            length -= piece.nbytes
            if not length:
                break
            begin = 0
        else:
            begin -= size
    return part
