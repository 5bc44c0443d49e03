"""Reservations: which logical CPU keeps time for which vCPU, so that deadlines hold.

Each vCPU has its time on one logical CPU, and earliest deadline first meets every deadline there as long as
the densities (what each needs of its period) are 1 together at most (Liu and Layland 1973; with the wake-up
rule of Abeni and Buttazzo 1998 also when vCPUs sleep and wake as they like). Packing is first fit by
decreasing density, the least free to go elsewhere first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from firmware.domain.vcpu import VCpu

WHOLE: Final = 1 << 32
"""The density that fills a logical CPU."""


def density(need: int, period: int) -> int:
    """The part of a logical CPU that so much in each period takes, rounded up."""
    return -(-need * WHOLE // period)


class Reservations:
    """Densities of vCPUs on logical CPUs."""

    def __init__(self, cores: Iterable[int]) -> None:
        self.used: dict[int, int] = dict.fromkeys(cores, 0)
        self.core: dict[VCpu, int] = {}
        self._density: dict[VCpu, int] = {}

    def room(self, vcpu: VCpu, wanted: int) -> int:
        """The logical CPUs that have so much left for a vCPU, as a bit mask."""
        return sum(1 << core for core, used in self.used.items()
                   if used + wanted <= WHOLE and vcpu.hard_affinity >> core & 1)

    def reserve(self, vcpu: VCpu, wanted: int, core: int) -> None:
        """Give a vCPU without a reservation so much of a logical CPU."""
        self.used[core] += wanted
        self.core[vcpu] = core
        self._density[vcpu] = wanted

    def release(self, vcpu: VCpu) -> None:
        """Take a vCPU's reservation away."""
        core, had = self.core.pop(vcpu), self._density.pop(vcpu)
        if core in self.used:
            self.used[core] -= had

    def packed(self, changed: Mapping[VCpu, int], cores: int | None = None,
               hard: Mapping[VCpu, int] | None = None) -> dict[VCpu, int] | None:
        """Where everybody fits when these vCPUs, new or not, have these densities (and `hard` affinities),
        and there are only these `cores`; None when there is no such place.
        """
        wanted = {**self._density, **changed}
        known = hard or {}
        allowed = {vcpu: known.get(vcpu, vcpu.hard_affinity) for vcpu in wanted}
        free = {core: WHOLE for core in sorted(self.used) if cores is None or cores >> core & 1}
        mask = sum(1 << core for core in free)
        order = sorted(wanted, key=lambda vcpu: ((allowed[vcpu] & mask).bit_count(), -wanted[vcpu]))
        places: dict[VCpu, int] = {}
        for vcpu in order:
            need = wanted[vcpu]
            for core, left in free.items():
                if need <= left and allowed[vcpu] >> core & 1:
                    free[core] = left - need
                    places[vcpu] = core
                    break
            else:
                return None
        return places

    def stays(self, changed: Mapping[VCpu, int]) -> bool:
        """Whether these vCPUs can have these densities where their reservations are."""
        extra: dict[int, int] = {}
        for vcpu, wanted in changed.items():
            core = self.core[vcpu]
            extra[core] = extra.get(core, 0) + wanted - self._density[vcpu]
        return all(self.used[core] + more <= WHOLE for core, more in extra.items())

    def resize(self, vcpu: VCpu, wanted: int) -> None:
        """Another density where the reservation is."""
        self.used[self.core[vcpu]] += wanted - self._density[vcpu]
        self._density[vcpu] = wanted

    def repack(self, places: Mapping[VCpu, int], changed: Mapping[VCpu, int]) -> list[VCpu]:
        """Take over what `packed` has found; who has another logical CPU now."""
        wanted = {**self._density, **changed}
        moved = [vcpu for vcpu, core in places.items() if self.core.get(vcpu) != core]
        self.used = dict.fromkeys(self.used, 0)
        self.core, self._density = {}, {}
        for vcpu, core in places.items():
            self.reserve(vcpu, wanted[vcpu], core)
        return moved
