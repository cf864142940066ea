"""What a reader of training output knows; the sources, the merger and the command line share it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Number = int | float


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``None`` is "not known"; percent is of the whole run, epoch and step are as printed."""

    percent: float | None = None
    epoch: Number | None = None
    epochs: Number | None = None
    step: Number | None = None
    steps: Number | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether anything at all is known."""
        fields = (self.percent, self.epoch, self.epochs, self.step, self.steps, self.loss)
        return any(value is not None for value in fields) or bool(self.metrics)

    def as_dict(self) -> dict[str, object]:
        """Return what JSON can carry: not-a-number and the infinities become words."""
        return {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "step": self.step,
            "steps": self.steps,
            "percent": self.percent,
            "loss": plain(self.loss),
            "metrics": {name: plain(value) for name, value in self.metrics.items()},
        }


@dataclass(frozen=True)
class Point:
    """One value of a curve; ``step`` grows over the run and is ``None`` where the output counts nothing."""

    tag: str
    step: int | None
    value: float


def plain(value: float | None) -> float | str | None:
    """Return a value as JSON can carry it: ``"nan"``, ``"inf"`` and ``"-inf"`` are strings."""
    if value is None or math.isfinite(value):
        return value
    return str(value)
