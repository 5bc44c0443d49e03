"""Parameters of real spinning drives, from published measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NS_PER_MINUTE: Final = 60_000_000_000


@dataclass(frozen=True, slots=True)
class Zone:
    """Cylinders with equally many sectors on each track. Skews are in sectors: how far round the first
    sector of a track lies behind that of the track (in the same cylinder; of the cylinder before) before it.
    """

    first_cylinder: int
    last_cylinder: int
    sectors_per_track: int
    track_skew: int
    cylinder_skew: int


@dataclass(frozen=True, slots=True)
class Drive:
    """A spinning drive. Times in nanoseconds.

    `seeks`: measured points (cylinders moved, time), rising; between them the time is interpolated
    linearly. `write_settling` is added where the heads moved before a write, `head_switch` is a change of
    surface in one cylinder. The overheads are the controller's work before the heads move: `read_overhead`,
    `write_overhead`; `hit_overhead` before data leaves that was read ahead. `segment` sectors are read
    ahead after a read.
    """

    name: str
    rpm: int
    surfaces: int
    zones: tuple[Zone, ...]
    seeks: tuple[tuple[int, int], ...]
    write_settling: int
    head_switch: int
    read_overhead: int
    write_overhead: int
    hit_overhead: int
    segment: int
    bus_rate: int
    """Bytes a second between drive and host."""
    depth: int
    """Commands that the drive queues."""

    @property
    def revolution(self) -> int:
        """Nanoseconds of one turn."""
        return NS_PER_MINUTE // self.rpm

    @property
    def sectors(self) -> int:
        """Capacity; spare sectors and remapped defects are not modelled."""
        return self.surfaces * sum(
            (zone.last_cylinder - zone.first_cylinder + 1) * zone.sectors_per_track for zone in self.zones)


CHEETAH_9LP: Final = Drive(
    name="Seagate Cheetah 9LP (ST39102LW)",
    rpm=10_045,
    surfaces=12,
    zones=(
        Zone(0, 846, 254, 97, 133),
        Zone(848, 1643, 245, 97, 133),
        Zone(1645, 2392, 238, 97, 117),
        Zone(2394, 3096, 227, 97, 116),
        Zone(3098, 3757, 217, 97, 108),
        Zone(3759, 4379, 209, 97, 108),
        Zone(4381, 4964, 201, 97, 108),
        Zone(4966, 5515, 189, 88, 94),
        Zone(5516, 6031, 181, 88, 93),
        Zone(6032, 6517, 174, 88, 93),
        Zone(6518, 6961, 167, 88, 80),
    ),
    seeks=(
        (1, 831_000), (2, 1_003_000), (3, 1_089_000), (5, 1_268_000), (8, 1_439_000), (16, 1_453_000),
        (20, 1_534_000), (30, 1_624_000), (40, 1_715_000), (50, 1_804_000), (60, 1_893_000), (70, 1_945_000),
        (80, 1_983_000), (90, 2_072_000), (100, 2_145_000), (150, 2_259_000), (200, 2_517_000),
        (250, 2_607_000), (300, 2_699_000), (350, 2_874_000), (400, 3_051_000), (450, 3_104_000),
        (500, 3_230_000), (600, 3_399_000), (700, 3_638_000), (800, 3_823_000), (900, 3_995_000),
        (1000, 4_118_000), (1200, 4_397_000), (1400, 4_573_000), (1600, 4_833_000), (1800, 4_993_000),
        (2000, 5_282_000), (2200, 5_541_000), (2400, 5_726_000), (2600, 5_963_000), (2800, 6_163_000),
        (3000, 6_345_000), (3200, 6_665_000), (3400, 6_847_000), (3600, 6_977_000), (3800, 7_164_000),
        (4000, 7_419_000), (4200, 7_649_000), (4400, 7_831_000), (4600, 8_087_000), (4800, 8_223_000),
        (5000, 8_492_000), (5200, 8_659_000), (5400, 8_987_000), (5600, 9_106_000), (5800, 9_296_000),
        (6000, 9_698_000), (6200, 9_830_000), (6400, 10_009_000), (6600, 10_230_000), (6800, 10_540_000),
        (6894, 10_627_000),
    ),
    write_settling=461_000,
    head_switch=30_000,
    read_overhead=283_620,
    write_overhead=896_400,
    hit_overhead=66_000,
    segment=561,
    bus_rate=80_000_000,
    depth=64,
)
"""As extracted from the drive for DiskSim and validated there (its "cheetah9LP" parameters: geometry,
skews, seek curve, settling, overheads, read-ahead segment). The bus is Ultra2 Wide SCSI and the drive
queues 64 commands (Seagate Cheetah 9LP Product Manual, volume 1, 83329240)."""
