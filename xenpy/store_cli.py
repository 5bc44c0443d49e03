"""`xenpy store` on the command line: its commands and their options, which are those of xenstore-utils."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from xenpy.errors import BadInputError

Action = Callable[[], int]


@click.group()
@click.option("-S", "--socket", type=click.Path(path_type=Path), metavar="PATH", envvar="XENSTORED_PATH",
              help="The socket of a running `xenpy boot --store-socket PATH`; otherwise $XENSTORED_PATH.")
@click.pass_context
def store(context: click.Context, socket: Path | None) -> None:
    """Look at the xenstore of a machine that runs, and change it, as with xenstore-ls and its friends.

    Start the machine with `xenpy boot --store-socket PATH ...`.
    """
    context.obj = socket


def _action(name: str, *arguments: object, **options: object) -> Action:
    from xenpy import store_commands

    socket = click.get_current_context().obj
    if socket is None:
        raise BadInputError("which machine? say xenpy store --socket PATH, or set XENSTORED_PATH")
    return store_commands.action(socket, getattr(store_commands, name), *arguments, **options)


@store.command()
@click.argument("path", default="/")
@click.option("-f", "full", is_flag=True, help="Print whole paths.")
@click.option("-p", "permissions", is_flag=True, help="Print permissions.")
def ls(path: str, full: bool, permissions: bool) -> Action:
    """Print everything below PATH."""
    return _action("ls", path, full=full, permissions=permissions)


@store.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-p", "prefix", is_flag=True, help="Print the path before each value.")
@click.option("-R", "raw", is_flag=True, help="Print values as they are, without escapes or line ends.")
def read(paths: tuple[str, ...], prefix: bool, raw: bool) -> Action:
    """Print values."""
    return _action("read", paths, prefix=prefix, raw=raw)


@store.command()
@click.argument("words", metavar="PATH VALUE...", nargs=-1, required=True)
@click.option("-R", "raw", is_flag=True, help="Take values as they are, without escapes.")
def write(words: tuple[str, ...], raw: bool) -> Action:
    """Set values, all or none; nodes are made where they are missing."""
    if len(words) % 2:
        raise BadInputError(f"{words[-1]}: give a value for each path")
    return _action("write", list(zip(words[::2], words[1::2], strict=True)), raw=raw)


@store.command("list")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-p", "prefix", is_flag=True, help="Print the path before each name.")
def names(paths: tuple[str, ...], prefix: bool) -> Action:
    """Print the names of what is directly below."""
    return _action("names", paths, prefix=prefix)


@store.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def exists(paths: tuple[str, ...]) -> Action:
    """Exit with 0 when all are there, with 1 when not."""
    return _action("exists", paths)


@store.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-t", "tidy", is_flag=True, help="Remove nodes above, too, that are empty then.")
def rm(paths: tuple[str, ...], tidy: bool) -> Action:
    """Remove nodes and all below them."""
    return _action("rm", paths, tidy=tidy)


@store.command()
@click.argument("path")
@click.argument("modes", metavar="MODE...", nargs=-1, required=True)
@click.option("-u", "upward", is_flag=True, help="Apply to the nodes above, too.")
@click.option("-r", "recursive", is_flag=True, help="Apply to the nodes below, too.")
def chmod(path: str, modes: tuple[str, ...], upward: bool, recursive: bool) -> Action:
    """Replace permissions.

    The first MODE names the owner and what others may (n0: nothing, r: read, w: write, b: both), each further
    one a domain with rights of its own: n0 r1.
    """
    return _action("chmod", path, modes, upward=upward, recursive=recursive)


@store.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-n", "count", type=click.IntRange(min=1), metavar="N", help="End after so many changes.")
def watch(paths: tuple[str, ...], count: int | None) -> Action:
    """Print the path of each change at or below PATH, until ctrl-C or the end of the machine."""
    return _action("watch", paths, count=count)
