"""The run queue against a sorted list."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from firmware.domain.vcpu import ANY_CPU, VCpu
from firmware.sched.runqueue import RunQueue

CPUS = 4
affinities = st.sampled_from((ANY_CPU, ANY_CPU, 1, 2, 3, 12, 15))


class Listed:
    """What the queue looks at of a vCPU."""

    def __init__(self, hard: int, soft: int) -> None:
        self.hard_affinity = hard
        self.soft_affinity = soft


KINDS = ("push", "front", "remove", "pop", "rekey")
steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.integers(-3, 3),
                           st.integers(0, CPUS - 1)), max_size=120)


@given(steps=steps, hard=st.lists(affinities, min_size=1, max_size=5),
       soft=st.lists(affinities, min_size=1, max_size=3))
def test_it_is_a_sorted_list(steps: list[tuple[str, int, int, int]], hard: list[int],
                             soft: list[int]) -> None:
    everybody = [cast(VCpu, Listed(hard[number % len(hard)], soft[number % len(soft)]))
                 for number in range(12)]
    queue, model, arrivals = RunQueue(), dict[VCpu, tuple[int, int]](), 0
    for what, who, key, cpu in steps:
        vcpu = everybody[who]
        allowed = [each for each in model if each.hard_affinity >> cpu & 1]
        if what in ("push", "front") and vcpu not in model:
            arrivals += 1
            queue.push(vcpu, key, front=what == "front")
            model[vcpu] = (key, -arrivals if what == "front" else arrivals)
        elif what == "remove":
            assert queue.remove(vcpu) == (model.pop(vcpu, None) is not None)
        elif what == "rekey":
            keys = {each: key * place[0] % 5 for each, place in model.items()}
            queue.rekey(keys.__getitem__)
            model = {each: (keys[each], place[1]) for each, place in model.items()}
        elif what == "pop":
            popped = queue.pop(cpu)
            assert popped is min(allowed, key=model.__getitem__, default=None)
            if popped is not None:
                del model[popped]
        assert len(queue) == len(model)
        assert queue.members() == sorted(model, key=model.__getitem__)
        for soft_too in (False, True):
            best = queue.first(cpu, soft=soft_too)
            able = [each for each in model if each.hard_affinity >> cpu & 1
                    and (not soft_too or each.soft_affinity >> cpu & 1)]
            assert (None if best is None else best[2]) == min(able, key=model.__getitem__, default=None)
        some = queue.some(3)
        assert len(set(some)) == len(some) == min(3, len(model))
        assert set(some) <= set(model)


def test_whoever_comes_and_goes_leaves_nothing_behind() -> None:
    queue = RunQueue()
    stays, goes = cast(VCpu, Listed(ANY_CPU, ANY_CPU)), cast(VCpu, Listed(ANY_CPU, ANY_CPU))
    queue.push(stays, 0)
    for turn in range(10_000):
        queue.push(goes, turn)
        queue.remove(goes)
    assert queue.pop(0) is stays
    lanes = queue._order
    assert sum(len(lane.heap) for lane in lanes) < 100


def test_lanes_of_affinities_nobody_has_any_more_go() -> None:
    queue = RunQueue()
    for mask in range(1, 2_000):
        queue.push(cast(VCpu, Listed(mask, ANY_CPU)), 0)
        assert queue.pop(mask.bit_length() - 1) is not None
    assert len(queue._order) < 100
