"""Adds up what the lines of one run say: where it is, of how much, and the curves."""

from __future__ import annotations

import math

from airhub.progress.reading import Reading, tidy
from airhub.progress.names import Role
from airhub.progress.record import Point, Progress

MAX_METRICS = 64
MAX_TAGS = 64
MAX_POINTS = 1000
_SURE = {Role.LOSS: 0, Role.NAMED_LOSS: 1, Role.COST: 2}


class Run:
    """What is known so far. ``copy()`` is cheap, so that a guess at an open line needs no undoing."""

    def __init__(self) -> None:
        self.epoch: float | None = None
        self.epochs: float | None = None
        self.step: float | None = None
        self.steps: float | None = None
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.percent: float | None = None
        self.fraction: float | None = None
        self.finished = False
        self.started = False
        self.evaluating = False
        self._done = False
        self._header = False
        self._loss_rank = 9
        self._rank: int | None = None
        self._scope = ""
        self._seen_scope = ""
        self._whole_epochs = False
        self._outer: tuple[float, float | None] | None = None
        self._base: int | None = None
        self._last_index = False
        self._top_epoch = 0.0
        self._run_steps: float | None = None
        self._main: tuple[float | None] | None = None
        self._main_nested = False
        self._candidate: tuple[Reading, bool] | None = None
        self._text_steps = False
        self._tracks = 0
        self._keras_done = self._keras_eval = False
        self._keras_headers = 0
        self._shift = 0.0
        self._last_x = -1.0
        self._points: dict[str, list[Point]] = {}
        self._tag_x: dict[str, float] = {}

    def copy(self) -> Run:
        other = Run.__new__(Run)
        other.__dict__.update(self.__dict__)
        other.metrics = dict(self.metrics)
        other._points = {}
        other._tag_x = {}
        return other

    def apply(self, said: Reading) -> None:
        """Take in what one line says."""
        if not self._mine(said):
            return
        if said.evaluation:
            self._evaluation(said)
            return
        counted = said.epoch is not None or said.step is not None or said.percent is not None
        if not counted and said.loss is None and not said.finished:
            if self.started:
                self._merge(said)
            self._totals(said)
            return
        if self.evaluating and not counted and said.loss is not None:
            # "Test Error:" and then "Avg loss: 2.1": not the training loss.
            if self.started:
                self._merge(Reading(metrics={"loss": said.loss, **said.metrics}), keep=True)
            return
        if not said.note:
            self.evaluating = False
        was_started = self.started
        if counted and not said.note or said.loss is not None:
            self.started = True
        if not was_started and self.started and self._candidate:
            self._adopt(said)
        self._totals(said)
        self._take_epoch(said)
        self._take_step(said)
        if said.finished:
            self.finished = True
        elif counted and not said.note:
            self.finished = False
        if said.loss is not None and _SURE[said.loss_role] <= self._loss_rank:
            self.loss, self._loss_rank = said.loss, _SURE[said.loss_role]
            if said.epoch is None and said.step is None and self._header:
                self._header, self._done = False, self.step is None
        self._merge(said)

    def apply_unsure(self, said: Reading, nested: bool) -> None:
        """Take in a bar that does not tell what it counts."""
        if not self._mine(said):
            return
        if self.evaluating and (self._main is None or said.steps != self._main[0]):
            return
        if nested and self._main is not None and not self._main_nested:
            return
        if self._main is not None:
            if said.steps == self._main[0]:
                self.apply(said)
            return
        if self._text_steps or self._keras_headers and self._keras_done:
            return
        self._candidate = (said, nested)
        if self.started:
            self._main, self._main_nested = (said.steps,), nested
            self.apply(said)

    def apply_keras(self, said: Reading, sure: bool) -> None:
        """Take in a Keras bar: one that starts anew with no epoch between is ``evaluate`` or ``predict``."""
        restarted = self._keras_done and (said.steps != self.steps or said.step != said.steps)
        if restarted and (self._keras_headers or not sure or said.steps != self.steps):
            self._keras_eval = True
        if self._keras_eval or self.evaluating or (not sure and not self._keras_headers and not self.started):
            return
        if self._keras_done and not restarted and not sure:
            return
        self.apply(said)
        self._keras_done = said.steps is not None and said.step == said.steps

    def _mine(self, said: Reading) -> bool:
        if said.rank is None:
            return True
        if self._rank is None or said.rank < self._rank:
            self._rank = said.rank
        return said.rank == self._rank

    @property
    def ranked(self) -> bool:
        return self._rank is not None

    def _evaluation(self, said: Reading) -> None:
        if self.started:
            self._merge(said, keep=True)
            if said.epoch is not None and said.complete:
                self._take_epoch(said)
        self.evaluating = self.evaluating or not said.metrics

    def _adopt(self, said: Reading) -> None:
        bar, nested = self._candidate or (Reading(), False)
        full = bar.steps is not None and bar.step is not None and bar.step >= bar.steps
        if (full and said.header) or said.step is not None:
            self._candidate = None
            return
        self._main, self._main_nested = (bar.steps,), nested
        self.step, self.steps = bar.step, bar.steps

    def _totals(self, said: Reading) -> None:
        if said.epoch is None and said.epochs is not None:
            self.epochs = said.epochs
        if said.step is None and said.steps is not None and not said.note:
            self._run_steps = said.steps
            if said.finished:
                self.steps, self._scope = said.steps, "run"
        if said.base is not None:
            self._base, self._last_index = said.base, True

    def _take_epoch(self, said: Reading) -> None:
        epoch = said.epoch
        if epoch is None:
            if said.step is not None or said.fraction is not None or said.percent is not None:
                self._header = False
            return
        if said.note:
            if self.epoch is None:
                self.epoch, self.epochs = epoch, said.epochs
            return
        if said.epochs is not None:
            self.epochs = said.epochs
        if epoch != int(epoch) or (said.complete and not said.bar):
            self.epoch, self._whole_epochs = epoch, True
            return
        if said.complete:
            self._outer = (epoch, said.epochs)
            if self.epoch is None or self._outer_is_epoch:
                self.epoch = epoch
                self._outer_is_epoch = True
            if said.epochs is None:
                return
            return
        self._outer_is_epoch = False
        if self._base is None or epoch == 0:
            self._base = 0 if epoch == 0 else self._base
        self._whole_epochs = False
        if epoch != self.epoch:
            self._track(epoch)
            self._new_epoch(said)
        self.epoch = epoch
        self._top_epoch = max(self._top_epoch, epoch)
        if said.header:
            self._keras_headers += 1
            self._keras_done = self._keras_eval = False
        if said.done:
            self._done, self._header = True, False
        elif said.header:
            self._done, self._header = False, True
        elif said.step is not None or said.fraction is not None:
            self._done = self._header = False
        self.fraction = said.fraction

    _outer_is_epoch = False

    def _track(self, epoch: float) -> None:
        # tqdm over the epochs without a name: its counter follows the epochs that other lines print.
        if self._main is not None and self.step is not None and self._tracks >= 0 and self.epoch is not None:
            near = abs(self.step - epoch) <= 1 and self._main[0] is not None and self._main[0] >= epoch
            self._tracks = self._tracks + 1 if near and self._main[0] != self.step or near and self._tracks else -1

    def _new_epoch(self, said: Reading) -> None:
        self._before = self.step
        self._done = False
        if self._is_run_scope() or said.done or said.step is not None:
            return
        self._close_steps()
        self.step = self.steps = None

    _before: float | None = None

    def _take_step(self, said: Reading) -> None:
        if said.percent is not None:
            self.percent = said.percent
        elif said.step is not None or said.epoch is not None:
            self.percent = None
        if said.step is None:
            return
        if said.scope:
            self._scope = said.scope
        if not said.bar:
            self._text_steps = True
        if self._before is not None and said.step is not None:
            if said.step < self._before:
                self._seen_scope = "epoch"
            elif said.step > self._before and self._seen_scope != "epoch":
                self._seen_scope = "run"
            self._before = None
        if self.step is not None and said.step < self.step:
            self._close_steps()
        if said.epoch is None and self._done and said.steps is not None and said.step < said.steps:
            self._done = False
        if not said.bar and said.steps is None and self._main is not None and self._main[0] == self.steps:
            self._main = None
        self.step = said.step
        self.steps = said.steps if said.steps is not None else self._run_steps
        if said.bar and said.epoch is None and self._header:
            self._header = False

    def _close_steps(self) -> None:
        if self.step is not None and not self._is_run_scope():
            self._shift += max(self.step, self.steps or 0)

    def _is_run_scope(self) -> bool:
        if self._scope == "run" and self._outer is None:
            return True
        if self._run_steps is not None and self.steps == self._run_steps:
            return True
        return self._scope != "epoch" and (self._seen_scope == "run" or self._whole_epochs)

    def _merge(self, said: Reading, keep: bool = False) -> None:
        for name, value in said.metrics.items():
            if name in self.metrics or len(self.metrics) < MAX_METRICS:
                self.metrics[name] = value
        x = self._x()
        if said.loss is not None and not keep:
            self._point("loss", x, said.loss)
        for name, value in said.metrics.items():
            self._point(name, x, value)

    def _x(self) -> float | None:
        if self.step is not None:
            # The step of a new epoch starts at nought; the curve goes on.
            known = self._is_run_scope() or self.epoch is None
            x = self.step if known else self._shift + self.step
        elif self.epoch is not None:
            x = self.epoch if self._shift == 0 else self._shift
        else:
            return None
        self._last_x = max(self._last_x, x)
        return self._last_x

    def _point(self, tag: str, x: float | None, value: float) -> None:
        if len(tag) > 120 or (tag not in self._tag_x and len(self._tag_x) >= MAX_TAGS):
            return
        points = self._points.setdefault(tag, [])
        point = Point(tag, None if x is None else int(x), value)
        if x is not None and points and points[-1].step == int(x):
            points[-1] = point
        elif x is None or int(x) > self._tag_x.get(tag, -1):
            points.append(point)
        if x is not None:
            self._tag_x[tag] = int(x)
        else:
            self._tag_x.setdefault(tag, -1)
        if len(points) > MAX_POINTS:
            del points[1::2]

    def take_points(self) -> list[Point]:
        taken = [point for points in self._points.values() for point in points]
        self._points = {}
        return taken

    def progress(self) -> Progress:
        epoch, epochs, step, steps = self.epoch, self.epochs, self.step, self.steps
        if self._tracks >= 2 and self._main is not None and self._main[0] == steps and epochs is None:
            epochs, steps, step = steps, None, None
        if self._outer is not None:
            epochs = epochs or self._outer[1]
        return Progress(
            percent=self._percent(epochs),
            epoch=tidy(epoch),
            epochs=tidy(epochs),
            step=tidy(step),
            steps=tidy(steps),
            loss=self.loss,
            metrics=dict(self.metrics),
        )

    def _percent(self, epochs: float | None) -> float | None:
        share = self._share(epochs)
        if share is None or not math.isfinite(share):
            return None
        return round(min(max(share, 0.0), 1.0) * 100, 2)

    def _share(self, epochs: float | None) -> float | None:
        if self.finished:
            return 1.0
        if self.percent is not None:
            return self.percent / 100
        within = self.step / self.steps if self.step is not None and self.steps else None
        if within is not None and (self.epoch is None or self._is_run_scope()) and self._outer is None:
            return within
        if self._tracks >= 2 and within is not None:
            return within
        if self._outer is not None and self._outer[1]:
            n, total = self._outer
            return (n + (within if within is not None and n < total and within < 1 else 0)) / total
        if self.epoch is None or not epochs:
            return None
        if self._whole_epochs:
            return self.epoch / epochs
        return self._of_epochs(epochs, within)

    def _of_epochs(self, epochs: float, within: float | None) -> float | None:
        base, total = 1, epochs
        if self._base == 0:
            base = 0
            # Counted from nought, "of 9" or "of 24" mostly names the last epoch, "of 10" or "of 25" their number.
            if self._last_index or self._top_epoch >= epochs or epochs % 5 == 4:
                total = epochs + 1
        if self._done:
            part = 1.0
        elif within is not None:
            part = min(within, 1.0)
        elif self.fraction is not None:
            part = self.fraction
        elif self._header or epochs >= 100:
            part = 0.0
        else:
            return None
        return ((self.epoch or 0) - base + part) / total
