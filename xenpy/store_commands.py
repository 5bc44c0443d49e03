"""What `xenpy store` does: the commands of xenstore-utils on the store of a machine that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from xenpy.errors import BadInputError, ExitStatus
from xenpy.output import show
from xenpy.store import StoreKeyError, permissions_of
from xenpy.store_client import StoreClient
from xenpy.store_text import MARGIN, WIDTH, escaped, listing, unescaped

ABSENT: Final = 1
"""Exit status of `exists` when a node is not there, as that of xenstore-exists."""

Work = Callable[[StoreClient], int]


def ask(path: Path, work: Work) -> int:
    """Do something with the store behind a socket; the exit status. Raises BadInputError."""
    try:
        with StoreClient(path) as client:
            return work(client)
    except StoreKeyError as error:
        raise BadInputError(str(error)) from error


def ls(client: StoreClient, path: str, *, full: bool, permissions: bool) -> int:
    """Print everything below a node."""
    lines = listing(client, path, full=full, permissions=permissions, width=_width())
    show("".join(f"{line}\n" for line in lines))
    return ExitStatus.DONE


def read(client: StoreClient, paths: Sequence[str], *, prefix: bool, raw: bool) -> int:
    """Print values: escaped, or as they are."""
    words: list[str] = []

    def values() -> None:
        words.clear()
        for path in paths:
            value = client.read(path)
            shown = value.decode("utf-8", "surrogateescape") if raw else f"{escaped(value)}\n"
            words.append(f"{path}: {shown}" if prefix else shown)

    client.transaction(values)
    show("".join(words))
    return ExitStatus.DONE


def write(client: StoreClient, pairs: Sequence[tuple[str, str]], *, raw: bool) -> int:
    """Set values, all or none."""
    def values() -> None:
        for path, text in pairs:
            client.write(path, text.encode("utf-8", "surrogateescape") if raw else unescaped(text))

    client.transaction(values)
    return ExitStatus.DONE


def names(client: StoreClient, paths: Sequence[str], *, prefix: bool) -> int:
    """Print the names of nodes' children."""
    words: list[str] = []

    def lists() -> None:
        words.clear()
        for path in paths:
            words.extend(f"{path}/{name}\n" if prefix else f"{name}\n" for name in client.children(path))

    client.transaction(lists)
    show("".join(words))
    return ExitStatus.DONE


def exists(client: StoreClient, paths: Sequence[str]) -> int:
    """Whether all nodes are there, as the exit status."""
    try:
        for path in paths:
            client.read(path)
    except StoreKeyError:
        return ABSENT
    return ExitStatus.DONE


def rm(client: StoreClient, paths: Sequence[str], *, tidy: bool) -> int:
    """Remove nodes; with `tidy` also those above that have then neither children nor a value."""
    def remove() -> None:
        for path in paths:
            client.rm(path)
            above = path.rpartition("/")[0]
            while tidy and above and not client.read(above) and not client.children(above):
                client.rm(above)
                above = above.rpartition("/")[0]

    client.transaction(remove)
    return ExitStatus.DONE


def chmod(client: StoreClient, path: str, words: Sequence[str], *, upward: bool, recursive: bool) -> int:
    """Replace permissions of a node, and of those above or below it."""
    wanted = permissions_of(words)

    def change() -> None:
        nodes = [path]
        while nodes:
            node = nodes.pop()
            client.chmod(node, wanted)
            if recursive:
                nodes += [f"{node.rstrip('/')}/{name}" for name in client.children(node)]
        above = path.rpartition("/")[0]
        while upward and above:
            client.chmod(above, wanted)
            above = above.rpartition("/")[0]

    client.transaction(change)
    return ExitStatus.DONE


def watch(client: StoreClient, paths: Sequence[str], *, count: int | None) -> int:
    """Print the path of each change as it comes, until there were `count` or the machine has ended."""
    for path in paths:
        client.watch(path)
    while count is None or count > 0:
        path_changed = client.next_event()
        if path_changed is None:
            break
        show(f"{path_changed}\n")
        count = None if count is None else count - 1
    return ExitStatus.DONE


def action(path: Path, work: Callable[..., int], *arguments: object, **options: object) -> Callable[[], int]:
    """What the command line is to do."""
    return partial(ask, path, lambda client: work(client, *arguments, **options))


def _width() -> int:
    try:
        return max(0, os.get_terminal_size(1).columns - MARGIN)
    except OSError:
        return WIDTH
