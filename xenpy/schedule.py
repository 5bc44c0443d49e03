"""The schedule trace for people: Chrome's trace JSON, which Perfetto opens, and a timeline as text.

The JSON follows the Trace Event Format: one track a logical CPU with who ran there, one track a vCPU with its
run states, and an instant for each wake-up. Times are microseconds of virtual time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from firmware.domain.vcpu import BLOCKED, OFFLINE, RUNNABLE, RUNNING
from firmware.sched import events
from firmware.trace import EVENTS, Record, Trace
from xenpy.errors import BadInputError, reason_of
from xenpy.output import write_all

CPUS: Final = 1
"""Process number of the tracks of logical CPUs; domain d has the process VCPUS + d."""
VCPUS: Final = 1000
STATE_NAMES: Final = {RUNNING: "running", RUNNABLE: "runnable", BLOCKED: "blocked", OFFLINE: "offline"}
NS_A_US: Final = 1000
SECOND: Final = 1_000_000_000
AT_ONCE: Final = 1000
"""Records written at once."""

Event = dict[str, Any]
Item = TypeVar("Item")


def chrome(records: Iterable[Record], until: int = 0) -> Iterator[Event]:
    """Trace Event Format objects for the records, metadata first for each track that is met. What goes on
    at the last record does so up to `until`, in virtual ns.
    """
    tracks: set[tuple[int, int]] = set()
    since: dict[tuple[int, int], tuple[int, str]] = {}

    def name(process: int, thread: int, track: str) -> Iterator[Event]:
        if (process, thread) not in tracks:
            if not any(known == process for known, _ in tracks):
                title = "CPUs" if process == CPUS else f"domain {process - VCPUS}"
                yield _metadata("process_name", process, thread, title)
            tracks.add((process, thread))
            yield _metadata("thread_name", process, thread, track)

    def begin(process: int, thread: int, when: int, what: str) -> Iterator[Event]:
        yield from end(process, thread, when)
        since[process, thread] = when, what

    def end(process: int, thread: int, when: int) -> Iterator[Event]:
        started, what = since.pop((process, thread), (when, ""))
        if what and when >= started:
            yield {"ph": "X", "name": what, "pid": process, "tid": thread, "ts": started / NS_A_US,
                   "dur": (when - started) / NS_A_US}

    last = until
    for record in records:
        last = max(last, record.when)
        if record.event == events.SWITCH_INFNEXT:
            yield from name(CPUS, record.core, f"CPU {record.core}")
            yield from begin(CPUS, record.core, record.when, _who(record))
        elif record.event == events.SWITCH_INFPREV:
            yield from end(CPUS, record.core, record.when)
        elif record.event == events.RUNSTATE_CHANGE:
            domain, vcpu, _, new = record.values
            yield from name(VCPUS + domain, vcpu, f"vCPU {vcpu}")
            yield from begin(VCPUS + domain, vcpu, record.when, STATE_NAMES[new])
        elif record.event == events.WAKE:
            domain, vcpu = record.values
            yield from name(VCPUS + domain, vcpu, f"vCPU {vcpu}")
            yield {"ph": "i", "s": "t", "name": "wake", "pid": VCPUS + domain, "tid": vcpu,
                   "ts": record.when / NS_A_US}
    for process, thread in list(since):
        yield from end(process, thread, last)


def _metadata(kind: str, process: int, thread: int, title: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": title}}


def _who(record: Record) -> str:
    return f"d{record.values[0]}v{record.values[1]}"


def timeline(records: Iterable[Record]) -> Iterator[str]:
    """One line a record: virtual seconds, logical CPU, the event's name in trace.h, its numbers."""
    for record in records:
        kind = EVENTS.get(record.event)
        name = f"{record.event:#x}" if kind is None else kind.name
        fields = [f"[{index}]" for index in range(len(record.values))] if kind is None else kind.fields
        values = "  ".join(f"{field}={value}" for field, value in zip(fields, record.values, strict=True))
        seconds, ns = divmod(record.when, SECOND)
        yield f"{seconds:4}.{ns:09}  cpu{record.core:<3}  {name:<22}  {values}".rstrip()


def check_path(path: Path) -> Path:
    """The path, if a trace can be written in the format that its ending names; BadInputError otherwise."""
    if path.suffix not in RENDERERS:
        raise BadInputError(
            f"{path}: a schedule trace is written as .json (for Chrome and Perfetto) or .txt (a timeline)"
        )
    return path


def write(trace: Trace, path: Path, until: int = 0) -> None:
    """Write the trace to a file, as its ending says; `until` as in `chrome`. BadInputError when that cannot
    be.
    """
    check_path(path)
    try:
        with FileIO(path, "w") as file:
            write_to(file, path, trace, until)
    except OSError as error:
        raise BadInputError(f"{path}: cannot write the schedule trace: {reason_of(error)}") from error


def write_to(file: FileIO, path: Path, trace: Trace, until: int = 0) -> None:
    """Write the trace to an open file in the format that the path's ending names. Raises OSError."""
    for text in RENDERERS[path.suffix](trace, until):
        write_all(file, text.encode())


def _json(trace: Trace, until: int) -> Iterator[str]:
    lost = json.dumps({"lost records": trace.lost})
    yield f'{{"displayTimeUnit":"ns","otherData":{lost},"traceEvents":[\n'
    separator = ""
    for entries in batched(chrome(trace, until)):
        yield separator + ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        separator = ",\n"
    yield "\n]}\n"


def _text(trace: Trace, _until: int) -> Iterator[str]:
    if trace.lost:
        yield f"# the ring was full: the first {trace.lost} records are lost\n"
    for lines in batched(timeline(trace)):
        yield "\n".join(lines) + "\n"


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of up to AT_ONCE items."""
    source = iter(items)
    while batch := list(islice(source, AT_ONCE)):
        yield batch


RENDERERS: Final = {".json": _json, ".txt": _text}
"""By a file's ending: the trace as pieces of text."""
