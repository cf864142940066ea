"""Checkpoints of a job with the metrics of their moment; which is best, which is meant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airhub.domain.models import Train
from airhub.errors import FieldError, InvalidRequest, InvalidState, NotFound
from airhub.usecases.base import Json, Parts
from airhub.usecases.views import moment


@dataclass(frozen=True)
class Checkpoint:
    """A file that a job saved. ``host`` is where it lies on this machine."""

    name: str
    path: str
    host: str
    size_bytes: int
    step: int | None
    epoch: int | None
    metrics: dict[str, Any]
    best: bool
    saved_at: datetime

    def as_json(self) -> Json:
        return {
            "name": self.name,
            "path": self.path,
            "size_bytes": self.size_bytes,
            "step": self.step,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "best": self.best,
            "saved_at": moment(self.saved_at),
        }


def list_checkpoints(parts: Parts, train: Train) -> list[Checkpoint]:
    """Return a job's checkpoints, newest first."""
    folder = parts.storage.output_folder(train.owner, train.id)
    rules = train.manifest.get("checkpoints") or {}
    patterns = tuple(rules["patterns"]) if rules.get("patterns") else None
    files = parts.storage.checkpoints(folder, patterns)
    if not files:
        return []
    tracker = parts.monitor.tracker(train)
    found = [(item, tracker.metrics_at(item.saved_at.timestamp(), item.step, item.epoch)) for item in files]
    best = _best([metrics for _, metrics in found], rules.get("metric"), rules.get("mode"))
    return sorted(
        (
            Checkpoint(
                name=item.name,
                path=f"trains/{train.id}/{item.name}",
                host=str(folder / item.name),
                size_bytes=item.size_bytes,
                step=item.step,
                epoch=item.epoch,
                metrics=metrics,
                best=index == best,
                saved_at=item.saved_at,
            )
            for index, (item, metrics) in enumerate(found)
        ),
        key=lambda checkpoint: (checkpoint.saved_at, checkpoint.step if checkpoint.step is not None else -1),
        reverse=True,
    )


def choose_checkpoint(parts: Parts, train: Train, wanted: str | None) -> Checkpoint:
    """Return the checkpoint that ``wanted`` names; none or ``best``: the best, else the newest."""
    found = list_checkpoints(parts, train)
    if not found:
        raise InvalidState(
            f"Train {train.id} has no checkpoint yet: its code must save one below /data/output (for example *.pth)."
        )
    if wanted in (None, "", "best"):
        return next((item for item in found if item.best), found[0])
    if wanted in ("newest", "latest", "last"):
        return found[0]
    assert wanted is not None
    name = wanted.lstrip("/").removeprefix(f"trains/{train.id}/")
    chosen = next((item for item in found if item.name == name), None)
    if chosen is None:
        if ".." in name.split("/") or "\0" in name or any(ord(char) < 32 for char in name):
            raise InvalidRequest.of("checkpoint", "is not the name of a checkpoint")
        names = ", ".join(item.name for item in found[:5])
        raise NotFound(
            f"Train {train.id} has no checkpoint {name!r}; it has {names}.",
            [FieldError("checkpoint", "is not a checkpoint of this train")],
        )
    return chosen


def _best(metrics: list[dict[str, Any]], metric: str | None, mode: str | None) -> int | None:
    """Return the index of the best by the metric (the loss where none is named); the later of equals."""
    name = metric or "loss"
    sign = -1.0 if mode == "max" else 1.0
    best: tuple[float, int] | None = None
    for index, values in enumerate(metrics):
        value = values.get(name)
        if not isinstance(value, int | float) or math.isnan(value):
            continue
        if best is None or sign * value <= best[0]:
            best = (sign * value, index)
    return None if best is None else best[1]
