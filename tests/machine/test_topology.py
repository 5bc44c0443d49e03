from __future__ import annotations

import pytest

from machine import Topology


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("2x4x2", (2, 4, 2)),
        ("4x2", (1, 4, 2)),
        ("8", (1, 8, 1)),
        (" 1X1X1 ", (1, 1, 1)),
        ("16x8x2", (16, 8, 2)),
    ],
)
def test_parse(text: str, shape: tuple[int, int, int]) -> None:
    topology = Topology.parse(text)
    assert (topology.sockets, topology.cores, topology.threads) == shape
    assert topology.cpus == shape[0] * shape[1] * shape[2]
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize(
    "text", ["", "x", "0", "2x0x1", "-1", "1x2x3x4", "2 x 2", "257", "16x16x2", "²", "1.5"]
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="topology"):
        Topology.parse(text)


def test_relations() -> None:
    topology = Topology(2, 3, 4)
    for cpu in range(topology.cpus):
        socket, core, thread = topology.position(cpu)
        assert topology.socket_of(cpu) == socket
        assert topology.core_of(cpu) == socket * 3 + core
        near = [other for other in range(24) if topology.core_of(other) == topology.core_of(cpu)]
        assert near.index(cpu) == thread
        near.remove(cpu)
        assert topology.siblings(cpu) == tuple(near)
    assert Topology(1, 8, 1).siblings(5) == ()
    for ask in (topology.siblings, topology.core_of, topology.socket_of):
        for cpu in (-1, 24):
            with pytest.raises(ValueError, match=f"no CPU {cpu}"):
                ask(cpu)


def test_threads_are_neighbours() -> None:
    topology = Topology(2, 4, 2)
    assert [topology.position(cpu) for cpu in (0, 1, 2, 7, 8, 15)] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 3, 1),
        (1, 0, 0),
        (1, 3, 1),
    ]
    with pytest.raises(ValueError, match="no CPU 16"):
        topology.position(16)
