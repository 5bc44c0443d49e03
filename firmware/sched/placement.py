"""Where vCPUs go: the choice of a logical CPU, and the order in which an idle one looks for work.

Sets of logical CPUs are bit masks. Nearness is that of caches: the threads of one core, then the cores of one
socket, then the rest of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from firmware.domain.vcpu import VCpu
from machine.topology import Topology

SAME, SIBLING, SOCKET, MACHINE = range(4)
"""Distances between two logical CPUs: the same, threads of one core, cores of one socket, anything else."""
DISTANCES: Final = 4


class Placement:
    """The lie of a machine's logical CPUs. Everything is worked out once, when it is made."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.cpus = topology.cpus
        self.threads = topology.threads
        self.all = (1 << self.cpus) - 1
        position = [topology.position(cpu) for cpu in range(self.cpus)]
        self.sibling_mask = [0] * self.cpus
        """By logical CPU: the threads of its core, itself among them."""
        self.socket_mask = [0] * self.cpus
        """By logical CPU: those of its socket."""
        by_core: dict[tuple[int, int], int] = {}
        by_socket: dict[int, int] = {}
        for cpu, (socket, core, _) in enumerate(position):
            by_core[socket, core] = by_core.get((socket, core), 0) | 1 << cpu
            by_socket[socket] = by_socket.get(socket, 0) | 1 << cpu
        for cpu, (socket, core, _) in enumerate(position):
            self.sibling_mask[cpu] = by_core[socket, core]
            self.socket_mask[cpu] = by_socket[socket]
        self._first_threads = sum(1 << cpu for cpu, (_, _, thread) in enumerate(position) if not thread)

    def distance(self, one: int, other: int) -> int:
        """SAME, SIBLING, SOCKET or MACHINE."""
        if one == other:
            return SAME
        if self.sibling_mask[one] >> other & 1:
            return SIBLING
        return SOCKET if self.socket_mask[one] >> other & 1 else MACHINE

    def whole(self, idle: int) -> int:
        """Those of a set whose siblings are all in it too."""
        if self.threads == 1:
            return idle
        firsts = idle & self._first_threads
        for thread in range(1, self.threads):
            firsts &= idle >> thread
        return firsts * ((1 << self.threads) - 1)

    def nearest(self, cpu: int, choice: int) -> int:
        """Of a set that is not empty, the one nearest to a logical CPU: itself, else by nearness, and among
        equally near ones the next higher number, going round.
        """
        if choice >> cpu & 1:
            return cpu
        for near in (self.sibling_mask[cpu], self.socket_mask[cpu]):
            if found := choice & near:
                return following(cpu, found)
        return following(cpu, choice)

    def idle_for(self, vcpu: VCpu, last: int, idle: int) -> int | None:
        """The idle logical CPU that suits a vCPU best: where its soft affinity lies before elsewhere, on a
        wholly idle core before beside a busy sibling, near `last` before further away. None when its hard
        affinity allows none.
        """
        allowed = idle & vcpu.hard_affinity
        if not allowed:
            return None
        preferred = allowed & vcpu.soft_affinity
        if preferred:
            allowed = preferred
        return self.nearest(last, self.whole(idle) & allowed or allowed)

    def initial(self, vcpu: VCpu, load: Mapping[int, int], cpus: int) -> int:
        """Where a new vCPU goes among `cpus` (a set): to the logical CPU with the least `load`, and among
        equal ones to the core, then to the socket, with the least, the lowest number first; where its soft
        affinity lies before elsewhere. Its hard affinity allows some of them.
        """
        allowed = cpus & vcpu.hard_affinity
        allowed = allowed & vcpu.soft_affinity or allowed
        by_core: dict[int, int] = {}
        by_socket: dict[int, int] = {}
        siblings, sockets = self.sibling_mask, self.socket_mask
        for cpu, here in load.items():
            core, socket = siblings[cpu], sockets[cpu]
            by_core[core] = by_core.get(core, 0) + here
            by_socket[socket] = by_socket.get(socket, 0) + here
        return min((cpu for cpu in load if allowed >> cpu & 1),
                   key=lambda cpu: (load[cpu], by_core[siblings[cpu]], by_socket[sockets[cpu]], cpu))

    def better(self, vcpu: VCpu, core: int, idle: int) -> int | None:
        """A better idle place for a vCPU that runs: where its soft affinity lies, if it runs elsewhere; a
        wholly idle core, if it runs beside a busy sibling. None when there is nothing to gain.

        `idle` holds idle logical CPUs only, so `core` itself is not among them.
        """
        allowed = idle & vcpu.hard_affinity
        if not allowed:
            return None
        preferred = allowed & vcpu.soft_affinity
        if not vcpu.soft_affinity >> core & 1:
            if preferred:
                return self.nearest(core, self.whole(idle) & preferred or preferred)
        else:
            allowed = preferred
        siblings = self.sibling_mask[core] & ~(1 << core)
        if not siblings or siblings & idle == siblings:
            return None
        free = self.whole(idle) & allowed
        return self.nearest(core, free) if free else None

    def levels(self, cpu: int) -> tuple[int, int, int]:
        """Disjoint sets around a logical CPU, the nearest first: its siblings, its socket, the rest."""
        siblings, socket = self.sibling_mask[cpu], self.socket_mask[cpu]
        return siblings & ~(1 << cpu), socket & ~siblings, self.all & ~socket

    def steal(self, thief: int, waiting: int, take: Callable[[int, int], VCpu | None],
              suits: Callable[[int, int], bool] | None = None) -> VCpu | None:
        """Work for a logical CPU that would idle: siblings' queues first, then its socket's, then the rest.

        `waiting`: logical CPUs on whose queues somebody waits. `take(victim, thief)` takes one off that queue
        that may run on the thief (not pinned elsewhere, not capped; never one that runs), or returns None.
        `suits(victim, thief)`: somebody waits there whose soft affinity names the thief; at each distance
        such a queue is asked first.
        """
        for level in self.levels(thief):
            left = waiting & level
            if suits is not None:
                asked = left
                while asked:
                    victim = following(thief, asked)
                    asked &= ~(1 << victim)
                    if suits(victim, thief):
                        found = take(victim, thief)
                        if found is not None:
                            return found
            while left:
                victim = following(thief, left)
                found = take(victim, thief)
                if found is not None:
                    return found
                left &= ~(1 << victim)
        return None


def following(cpu: int, choice: int) -> int:
    """The lowest member of a set above a number, else its lowest. The set is not empty."""
    above = choice >> cpu + 1
    if above:
        return cpu + (above & -above).bit_length()
    return (choice & -choice).bit_length() - 1
