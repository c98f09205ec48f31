"""A training's numbers, as its log tells them."""

from __future__ import annotations

import math
from typing import Any


def told(trainer: Any, name: str = "loss") -> list[float]:
    """Train, and what the log tells of `name` at each step."""
    trainer.train()
    return told_of(trainer, name)


def told_of(trainer: Any, name: str) -> list[float]:
    """What the log of a training tells of `name` at each step: three at least, all finite."""
    values = [float(entry[name]) for entry in trainer.state.log_history if name in entry]
    print(f"{type(trainer).__name__} {name}: " + " ".join(f"{value:.4f}" for value in values))
    assert len(values) >= 3 and trainer.state.global_step >= 3
    assert all(math.isfinite(value) for value in values)
    return values


def falls(trainer: Any, name: str = "loss") -> list[float]:
    """Train, and check that the loss falls."""
    values = told(trainer, name)
    assert values[-1] < values[0]
    return values
