"""Arguments drawn evenly from a seeded generator, in the vocabulary of hypothesis' strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Sampler = Callable[[Random], Any]


def integers(low: int, high: int) -> Sampler:
    return lambda rng: rng.randint(low, high)


def booleans() -> Sampler:
    return lambda rng: rng.random() < 0.5


def sampled_from(choices: Sequence[Any]) -> Sampler:
    return lambda rng: rng.choice(choices)


def lists(element: Sampler, min_size: int = 0, max_size: int = 6) -> Sampler:
    return lambda rng: [element(rng) for _ in range(rng.randint(min_size, max_size))]


def tuples(*elements: Sampler) -> Sampler:
    return lambda rng: tuple(element(rng) for element in elements)
