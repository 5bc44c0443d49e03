"""`python -m tools.oracle run IMAGE`: IMAGE is a file or `builtin:NAME`; its console goes to stdout."""
from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

import guests
from tools.oracle import End, OracleError, attacks, dom0, domu, mmufuzz, record


def main(arguments: list[str]) -> int:
    """Exit status: 0 powered off, 1 crashed, 2 cannot run, 3 timeout."""
    parser = argparse.ArgumentParser(prog="oracle", description="Run a PV kernel on real Xen.")
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run", help="run an image and print its console")
    run.add_argument("image", help="a file, or builtin:NAME")
    run.add_argument("--cmdline", default="", help="the kernel's command line")
    run.add_argument("--vcpus", type=int, default=None)
    run.add_argument("--memory", type=int, default=128, help="MiB")
    run.add_argument("--timeout", type=float, default=60, help="seconds")
    run.add_argument("--domu", action="store_true", help="as an unprivileged guest of a Debian dom0")
    run.add_argument("--log", action="store_true", help="print all the serial line carried, Xen's lines too")
    record_verb = verbs.add_parser("record", help="keep the consoles of our guests as the tests' data")
    record_verb.add_argument("guests", nargs="*", default=list(guests.RECORDED), help="by default all")
    check = verbs.add_parser("check", help="compare with what true unprivileged guests print")
    check.add_argument("guests", nargs="*", default=list(guests.RECORDED), help="all of them by default")
    fuzz = verbs.add_parser("mmufuzz", help="record what random page-table operations give a true domU")
    fuzz.add_argument("--output", type=Path, default=mmufuzz.PLACE)
    fuzz.set_defaults(act=_mmufuzz)
    attack = verbs.add_parser("attacks", help="run the attack guests: on real Xen, too, they must fail")
    attack.add_argument("names", nargs="*", default=list(attacks.RUNNABLE), help="all of them by default")
    attack.set_defaults(act=_attacks)
    record_verb.set_defaults(act=_record)
    check.set_defaults(act=_check)
    run.set_defaults(act=_run)
    options = parser.parse_args(arguments)
    try:
        act: Callable[[argparse.Namespace], int] = options.act
        return act(options)
    except (OracleError, OSError) as error:
        sys.stderr.write(f"{error}\n")
    except KeyError as error:
        sys.stderr.write(f"there is no guest {error}\n")
    return 2


def _check(options: argparse.Namespace) -> int:
    jobs = {}
    for name in options.guests:
        guest = guests.GUESTS[name]
        jobs[name] = domu.Job(guest.build(), guest.cmdline, guest.vcpus)
    same = True
    for name, result in domu.run(jobs).items():
        lines = difflib.unified_diff(
            record.expected(name).splitlines(), result.console.splitlines(), f"{name} as dom0",
            f"{name} as domU", n=0, lineterm="")
        for line in lines:
            same = False
            sys.stdout.write(line + "\n")
    return 0 if same else 1


def _record(options: argparse.Namespace) -> int:
    for name in options.guests:
        sys.stderr.write(f"{record.record(name)}\n")
    return 0


def _attacks(options: argparse.Namespace) -> int:
    status = 0
    for name, result in attacks.run(options.names).items():
        for line in attacks.surprises(name, result):
            status = 1
            sys.stdout.write(f"{name}: {line}\n")
        sys.stdout.write(f"{name}: {result.console.count('PASS')} attempts failed\n")
    return status


def _mmufuzz(options: argparse.Namespace) -> int:
    sys.stderr.write(f"{mmufuzz.record(path=options.output)}\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    kind, _, name = options.image.partition(":")
    guest = guests.GUESTS[name] if kind == "builtin" else None
    image = guest.build() if guest else Path(options.image).read_bytes()
    vcpus = options.vcpus or (guest.vcpus if guest else 1)
    if options.domu:
        job = domu.Job(image, options.cmdline, vcpus, options.memory)
        result = domu.run({"guest": job}, timeout=round(options.timeout))["guest"]
    else:
        result = dom0.run(image, options.cmdline, vcpus=vcpus, memory=options.memory, timeout=options.timeout)
    sys.stdout.write(result.log if options.log else result.console)
    sys.stderr.write(f"{result.end.value}\n")
    return {End.POWEROFF: 0, End.CRASH: 1, End.TIMEOUT: 3}.get(result.end, 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
