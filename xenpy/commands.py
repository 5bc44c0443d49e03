"""The commands and their options. What they do is in modules of their own, loaded when a command runs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xenpy import __version__
from xenpy.errors import BadInputError
from xenpy.options import (
    MAX_CPUS,
    MAX_MEMORY_MIB,
    MAX_VCPUS,
    MIN_MEMORY_MIB,
    CacheSize,
    DiskChoice,
    FaultChoice,
    Keys,
    Pattern,
    SchedulerChoice,
    Seconds,
    Settings,
    Shape,
)
from xenpy.output import show
from xenpy.store_cli import store

if TYPE_CHECKING:
    from machine.faults import Fault
    from machine.topology import Topology
    from xenpy.diskspec import DiskSpec

EXIT_STATUSES = """\b
Exit status:
  0    the guest powered off, --until matched, or you detached
  1    the guest crashed, or the power failed (--disk-fault disk.power)
  2    bad usage, a bad image, or a file that cannot be read or written
  3    a time limit, or the guest waits for something that will never come
  4    a fault of xenpy itself
  130  ctrl-C (143: SIGTERM)"""

Action = Callable[[], int]
"""What a command does, once its line is understood; returns the exit status."""


def run(arguments: list[str]) -> int:
    """Parse and run one command line; its exit status. Raises XenpyError for everything the user can mend.

    click only parses: a command's function returns what is to be done. What click prints (help, version) goes
    out through our one writer, which says why when it cannot.
    """
    words = io.StringIO()
    try:
        with redirect_stdout(words), redirect_stderr(io.StringIO()):
            action = xenpy.main(arguments, prog_name="xenpy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        raise BadInputError(f"{error.format_message().rstrip('.')}. {_hint(error)}") from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    show(words.getvalue())
    return action() if callable(action) else int(action)


def _hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"See {context.command_path if context else 'xenpy'} --help."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="xenpy %(version)s")
def xenpy() -> None:
    """A whole x86 machine with the Xen hypervisor as its firmware.

    It boots unmodified paravirtual kernels: Debian's, GRUB, or those it brings along.
    """


@xenpy.command(epilog=EXIT_STATUSES)
@click.argument("image")
@click.option("--ramdisk", type=click.Path(path_type=Path), metavar="FILE", help="Initial RAM disk.")
@click.option("--cmdline", default="", metavar="TEXT", help="The kernel's command line.")
@click.option("--memory", type=click.IntRange(MIN_MEMORY_MIB, MAX_MEMORY_MIB), default=256, show_default=True,
              metavar="MIB", help="The guest's memory.")
@click.option("--vcpus", type=click.IntRange(1, MAX_VCPUS), default=1, show_default=True, metavar="N",
              help="The guest's virtual CPUs.")
@click.option("--cpus", type=click.IntRange(1, MAX_CPUS), metavar="N",
              help="The machine's logical CPUs: one socket of N cores. As many as --vcpus when not given.")
@click.option("--topology", type=Shape(), metavar="SxCxT",
              help="The machine's sockets, cores and threads; instead of --cpus.")
@click.option("--name", metavar="NAME", help="The guest's name; that of the image when not given.")
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True, metavar="N",
              help="Seed of all randomness. One seed, one run.")
@click.option("--input", "inputs", type=Keys(), multiple=True, metavar="TEXT",
              help=r"Type a line when the guest waits for input; may be repeated. "
                   r"\n \r \t \e \b \0 \\ \xHH are escapes; \c at the end leaves the line open.")
@click.option("--until", type=Pattern(), metavar="REGEX", help="End when the console has said this.")
@click.option("--within", type=Seconds(), metavar="SECONDS", help="End after so much virtual time.")
@click.option("--wall", type=Seconds(), metavar="SECONDS", help="End after so much time of the host.")
@click.option("--log", type=click.Path(path_type=Path), metavar="FILE",
              help="Log console lines and messages with their virtual time.")
@click.option("--stats", type=click.Path(path_type=Path), metavar="FILE.json", help="Write counters as JSON.")
@click.option("--sched", type=SchedulerChoice(), metavar="NAME[:P=V,...]",
              help="The scheduler and its parameters; `xenpy schedulers` lists them.")
@click.option("--share", type=Settings(), metavar="P=V,...",
              help="The guest's share, in its scheduler's parameters: weight=512,cap=50.")
@click.option("--affinity", metavar="CPUS", help="Logical CPUs where the guest may run: 0-3,^2.")
@click.option("--smt-factor", type=click.FloatRange(0.01, 1.0), metavar="F",
              help="A thread's speed while its sibling is busy.")
@click.option("--sched-trace", type=click.Path(path_type=Path), metavar="FILE",
              help="Write who ran when and where: .json for Chrome and Perfetto, .txt a timeline.")
@click.option("--disk", "disks", type=DiskChoice(), multiple=True, metavar="DISKSPEC",
              help="A disk, as xl writes it: 'format=raw, vdev=xvda, access=rw, target=PATH', or "
                   "PATH,raw,xvda,rw; may be repeated. Beside xl's words: model=flash|spinning, snapshot, "
                   "overlay=FILE, sched=NAME, extents=FIRST+SECTORS:..., write-cache, shared.")
@click.option("--disk-sched", type=SchedulerChoice(), metavar="NAME[:P=V,...]",
              help="The disks' scheduler and its parameters; `xenpy schedulers` lists them.")
@click.option("--disk-share", type=Settings(), metavar="P=V,...",
              help="The guest's share of its disks: weight=400,class=interactive.")
@click.option("--disk-fault", "disk_faults", type=FaultChoice(), multiple=True, metavar="POINT[:P=V,...]",
              help="Something that goes wrong: disk.read:device=xvda,sectors=100-200,probability=0.01,"
                   "after=3,times=1; also disk.write, disk.torn, disk.flush, disk.slow, disk.power.")
@click.option("--disk-cache", type=CacheSize(), metavar="on|off|MIB",
              help="Unused memory that may keep what was read from disks.")
@click.option("--disk-cache-calls", is_flag=True, help="The guest may map what that cache holds.")
@click.option("--store-socket", type=click.Path(path_type=Path), metavar="PATH",
              help="Answer for the xenstore on a socket there while the guest runs: see xenpy store.")
@click.option("--hash", "hash_blocks", is_flag=True,
              help="Hash the address of every block executed (slower); the hash is in --stats and on stderr.")
def boot(image: str, ramdisk: Path | None, cmdline: str, memory: int, vcpus: int, cpus: int | None,
         topology: Topology | None, name: str | None, seed: int, inputs: tuple[bytes, ...],
         until: re.Pattern[str] | None, within: float | None, wall: float | None, log: Path | None,
         stats: Path | None, sched: tuple[str, dict[str, str]] | None, share: dict[str, str] | None,
         affinity: str | None, smt_factor: float | None, sched_trace: Path | None,
         disks: tuple[DiskSpec, ...], disk_sched: tuple[str, dict[str, str]] | None,
         disk_share: dict[str, str] | None, disk_faults: tuple[Fault, ...],
         disk_cache: int | None, disk_cache_calls: bool,
         store_socket: Path | None,
         hash_blocks: bool) -> Action:
    """Boot IMAGE, a paravirtual kernel: a file, or builtin:NAME (see xenpy guests).

    The guest's console goes to stdout, everything else to stderr. With a terminal on stdin and no --input the
    keyboard is the guest's; ctrl-] ends.
    """
    from machine.topology import Topology
    from xenpy import boot as booting
    from xenpy.disking import DiskRequest
    from xenpy.scheduling import SchedulingRequest

    if cpus is not None and topology is not None:
        raise BadInputError("--cpus and --topology say the same thing: give one of them")
    return partial(booting.boot, booting.BootRequest(
        image=image, ramdisk=ramdisk, cmdline=cmdline, memory=memory, vcpus=vcpus,
        topology=topology or Topology(cores=cpus or vcpus), name=name, seed=seed, inputs=inputs, until=until,
        within=within, wall=wall, log=log, stats=stats, hash_blocks=hash_blocks,
        scheduling=SchedulingRequest.of(sched, share, affinity, smt_factor, sched_trace),
        store_socket=store_socket,
        disks=DiskRequest.of(disks, disk_sched, disk_share, disk_faults, disk_cache,
                             cache_calls=disk_cache_calls),
    ))


@xenpy.command(epilog=EXIT_STATUSES)
def demo() -> Action:
    """Boot the built-in guest on an emulated two-core machine."""
    from xenpy import boot as booting

    return booting.demo


@xenpy.command()
def guests() -> Action:
    """List the kernels that come along, for `xenpy boot builtin:NAME`."""
    from xenpy import images

    return images.show_builtin


@xenpy.command()
def schedulers() -> Action:
    """List the schedulers of CPUs and of disks, and their parameters with units, defaults and ranges."""
    from xenpy import scheduling

    return scheduling.show_all


@xenpy.command()
def doctor() -> Action:
    """Check that this host can run xenpy: system, Python, Unicorn build, memory, optional tools."""
    from xenpy import doctor as checks

    return checks.report


xenpy.add_command(store)
