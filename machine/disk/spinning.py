"""Spinning: the timing of a drive with one arm, from its geometry, its seek curve and where it has turned to.

A request waits for the controller (time that passes unseen while the request is queued), the arm, the turn
of the platters to its first sector, and its sectors passing by; on the way to the next track the skew of
that track. The platters turn with virtual time: sector 0 of cylinder 0 passes at every multiple of a
revolution, so nothing is random. After a read the drive reads on, up to a segment, until it gets something
else to do: who reads sequentially runs at the media's rate. Writes are on the platters when they finish:
there is no write cache, so a flush costs the controller's time only. An image lies on the drive from the
outermost cylinder on; for one that is larger than the drive, every track has a whole multiple of its
sectors.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import pairwise

from .drives import CHEETAH_9LP, Drive
from .model import Head
from .request import SECTOR, DiskRequest, Operation

_NS = 1_000_000_000
_Track = tuple[int, int, int, int, int]
"""Sectors per track, sector on the track, slot of the turn it lies in, cylinder, surface."""


class Spinning:
    """The model of `drive` with an image of `sectors`."""

    __slots__ = ("_curve", "_first", "_period", "_zones", "concurrent", "density", "depth", "drive", "name")

    def __init__(self, sectors: int, drive: Drive = CHEETAH_9LP) -> None:
        self.drive = drive
        self.name = drive.name
        self.depth = drive.depth
        self.concurrent = 1
        self.density = max(1, -(-sectors // drive.sectors))
        self._period = drive.revolution
        self._curve = _curve(drive)
        self._first: list[int] = []
        self._zones: list[tuple[int, int, int, int, int]] = []
        at = 0
        for zone in drive.zones:
            per_track = zone.sectors_per_track * self.density
            self._first.append(at)
            self._zones.append((at, zone.first_cylinder, per_track, zone.track_skew * self.density,
                                zone.cylinder_skew * self.density))
            at += (zone.last_cylinder - zone.first_cylinder + 1) * drive.surfaces * per_track

    def head(self) -> Head:
        """At rest on the outermost cylinder."""
        return Head()

    def seek(self, cylinders: int) -> int:
        """Nanoseconds for the arm to move that far."""
        return self._curve[cylinders]

    def locate(self, sector: int) -> _Track:
        """Where a sector is: sectors per track, sector on its track, slot of the turn, cylinder, surface."""
        zone = self._zones[bisect_right(self._first, sector) - 1]
        first, cylinder, per_track, track_skew, cylinder_skew = zone
        track, index = divmod(sector - first, per_track)
        cylinders, surface = divmod(track, self.drive.surfaces)
        slot = (index + track * track_skew + cylinders * (cylinder_skew - track_skew)) % per_track
        return per_track, index, slot, cylinder + cylinders, surface

    def service(self, request: DiskRequest, head: Head, now: int) -> int:
        """See `Model`."""
        drive = self.drive
        operation, sector, sectors = request.operation, request.sector, request.sectors
        if operation == Operation.READ:
            if self._comes_by_itself(request, head, now):
                return self._read_on(request, head, now, sector + sectors - head.next_sector) - now
            end = self._transfer(sector, sectors, self._reach(request, head, now), head)
            head.next_sector, head.next_at = sector + sectors, end
            return end - now
        head.next_sector = -1
        if operation == Operation.WRITE:
            return self._transfer(sector, sectors, self._reach(request, head, now), head) - now
        return max(now, request.submitted + drive.write_overhead) - now

    def worst(self, operation: Operation, sectors: int) -> int:
        """See `Model`: the longest seek, a whole turn, the slowest zone, every change of track."""
        drive = self.drive
        overhead = max(drive.read_overhead, drive.write_overhead)
        if operation > Operation.WRITE:
            return overhead
        per_track = min(zone[2] for zone in self._zones)
        skew = max(max(zone[3], zone[4]) / zone[2] for zone in self._zones)
        changes = -(-sectors // per_track) + 1
        arm = self._curve[-1] + drive.write_settling + drive.head_switch
        passing = sectors * self._period // per_track + int(changes * skew * self._period)
        return overhead + arm + self._period + passing + changes

    def reach(self, request: DiskRequest, head: Head, now: int) -> int:
        """See `Model`."""
        if request.operation > Operation.WRITE:
            return 0
        if request.operation == Operation.READ and request.sector == head.next_sector:
            return 0
        ready = self._reach(request, head, now)
        per_track, _, slot, _, _ = self.locate(request.sector)
        return ready + (slot * self._period // per_track - ready) % self._period - now

    def _reach(self, request: DiskRequest, head: Head, now: int) -> int:
        """When the right head is over the track of the first sector, and settled. Counts the seek."""
        drive = self.drive
        write = request.operation == Operation.WRITE
        at = max(now, request.submitted + (drive.write_overhead if write else drive.read_overhead))
        _, _, _, cylinder, surface = self.locate(request.sector)
        if cylinder != head.cylinder:
            at += self._curve[abs(cylinder - head.cylinder)]
        elif surface != head.surface:
            at += drive.head_switch
        else:
            return at
        return at + drive.write_settling if write else at

    def _transfer(self, sector: int, sectors: int, at: int, head: Head) -> int:
        """When the sectors have passed, if the head is over the first track at `at`. Moves the head."""
        period, drive = self._period, self.drive
        while True:
            per_track, index, slot, cylinder, surface = self.locate(sector)
            if cylinder != head.cylinder:
                head.seeks += 1
                head.cylinder = cylinder
            head.surface = surface
            here = per_track - index
            if here > sectors:
                here = sectors
            phase = slot * period // per_track
            # The end is taken from the same rounded phases, so that the next sector is met exactly.
            at += (phase - at) % period + (slot + here) * period // per_track - phase
            sectors -= here
            if not sectors:
                return at
            sector += here
            at += drive.head_switch if surface + 1 < drive.surfaces else self._curve[1]

    def _read_on(self, request: DiskRequest, head: Head, now: int, sectors: int) -> int:
        """When a read is finished that begins in what the drive has been reading ahead."""
        drive = self.drive
        ready = max(now, request.submitted + drive.hit_overhead)
        buffered = min(sectors, drive.segment)
        media = self._transfer(head.next_sector, buffered, self._on_track(head), head)
        if sectors > buffered:
            # The segment may have been full: then reading went on when the request came.
            media = self._transfer(head.next_sector + buffered, sectors - buffered, max(media, now), head)
        head.next_sector, head.next_at = request.sector + request.sectors, media
        return max(media, ready + request.sectors * SECTOR * _NS // drive.bus_rate)

    def _comes_by_itself(self, request: DiskRequest, head: Head, now: int) -> bool:
        """Whether reading on brings the first sector no later than the arm could be there."""
        ahead = request.sector - head.next_sector
        if head.next_sector < 0 or not 0 <= ahead < self.drive.segment:
            return False
        if not ahead:
            return True
        place = head.cylinder, head.surface, head.seeks
        passed = self._transfer(head.next_sector, ahead, self._on_track(head), head)
        head.cylinder, head.surface, head.seeks = place
        return passed <= self._reach(request, head, now)

    def _on_track(self, head: Head) -> int:
        """When the head is over the track with which reading goes on."""
        _, _, _, cylinder, surface = self.locate(head.next_sector)
        if cylinder != head.cylinder:
            return head.next_at + self._curve[abs(cylinder - head.cylinder)]
        return head.next_at if surface == head.surface else head.next_at + self.drive.head_switch


@cache
def _curve(drive: Drive) -> tuple[int, ...]:
    """The time of a seek, by cylinders moved. Beyond the last measured point it goes on with the last
    slope.
    """
    curve = [0]
    points = list(drive.seeks)
    for (near, near_ns), (far, far_ns) in pairwise(points):
        curve += [near_ns + (far_ns - near_ns) * (d - near) // (far - near) for d in range(len(curve), far)]
    (near, near_ns), (far, far_ns) = points[-2:]
    last = drive.zones[-1].last_cylinder
    curve += [far_ns + (far_ns - near_ns) * (d - far) // (far - near) for d in range(far, last + 1)]
    return tuple(curve)
