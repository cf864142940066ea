"""Follows what running jobs write, logs and event files alike, and tells the world how far they are."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from watchfiles import awatch

from airhub.domain.lifecycle import HOLDING, Status
from airhub.domain.models import Train
from airhub.domain.workload import WorkloadName
from airhub.errors import RuntimeUnavailable
from airhub.progress.tracker import JobClock, Tracker
from airhub.runtimes.base import Runtime
from airhub.storage import Storage
from airhub.store import Store

PUBLISH_SECONDS = 0.04
"""Progress is told at most this often, for all jobs together."""
SAVE_SECONDS = 5.0
"""How often a running job's progress is written to its record, so that lists after a restart know it."""
DRAIN_SECONDS = 30.0
"""How long the end of a job waits for output that still comes in."""
TRACKERS_KEPT = 64
CHUNK = 1 << 16
REPLAY_BYTES = 8 << 20
"""How much of a log is read again to know where a job stands, after a restart or for a finished job."""


class Monitor:
    """The readers of what jobs say of themselves; one log pump a running job, one watcher for all event files."""

    def __init__(
        self, store: Store, storage: Storage, runtime: Runtime, clock: Callable[[], datetime], log: logging.Logger
    ):
        self._store = store
        self._storage = storage
        self._runtime = runtime
        self._clock = clock
        self._log = log
        self._trackers: OrderedDict[int, Tracker] = OrderedDict()
        self._pumps: dict[WorkloadName, asyncio.Task[None]] = {}
        self._live: dict[int, str] = {}
        self._dirty: set[int] = set()
        self._unread: set[int] = set()
        self._wake = asyncio.Event()
        self._rewatch = asyncio.Event()
        self._log_changed: dict[int, asyncio.Event] = {}
        self._saved: dict[int, float] = {}
        self._told: dict[int, dict[str, Any]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        self._tasks = [
            asyncio.create_task(self._publish_loop(), name="progress"),
            asyncio.create_task(self._watch_loop(), name="event files"),
        ]

    async def close(self) -> None:
        """Stop reading; save where the readers are."""
        self._rewatch.set()
        for task in (*self._tasks, *self._pumps.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._pumps.values(), return_exceptions=True)
        for tracker in self._trackers.values():
            tracker.close()
        self._trackers.clear()

    def follow(self, train: Train) -> None:
        """Read what the train's current attempt writes from now on, and what it wrote while nobody looked."""
        if train.workload in self._pumps:
            return
        tracker = self.tracker(train)
        self._live[train.id] = train.owner
        self._unread.add(train.id)
        self._rewatch.set()
        self._wake.set()
        pump = asyncio.create_task(self._pump(train, tracker), name=f"log {train.workload}")
        self._pumps[train.workload] = pump
        pump.add_done_callback(lambda _: self._pumps.pop(train.workload, None))

    async def drain(self, train: Train) -> None:
        """Wait until all that an ended attempt wrote has been read, within reason."""
        pump = self._pumps.get(train.workload)
        if pump is not None:
            done, _ = await asyncio.wait({pump}, timeout=DRAIN_SECONDS)
            if not done:
                self._log.warning("Output of %s still comes in after %.0f s; the rest is left", train.workload, DRAIN_SECONDS)
                pump.cancel()
        await self._read_events(train.id, self.tracker(train))
        self._live.pop(train.id, None)
        self._rewatch.set()

    def forget(self, train_id: int) -> None:
        """Let go of everything that is kept of a train."""
        self._live.pop(train_id, None)
        tracker = self._trackers.pop(train_id, None)
        if tracker is not None:
            tracker.close()
        self._saved.pop(train_id, None)
        self._told.pop(train_id, None)
        self._log_event(train_id).set()
        self._log_changed.pop(train_id, None)

    def tracker(self, train: Train) -> Tracker:
        """Return the reader of a train, opened and caught up with its log if it is not at hand."""
        tracker = self._trackers.get(train.id)
        if tracker is None:
            tracker = Tracker(
                output=self._storage.output_folder(train.owner, train.id),
                columns=self._storage.columns_folder(train.owner, train.id),
                patterns=tuple(train.manifest.get("progress", ())),
            )
            self._catch_up(train, tracker)
            self._trackers[train.id] = tracker
            while len(self._trackers) > TRACKERS_KEPT + len(self._live):
                oldest = next((key for key in self._trackers if key not in self._live and key != train.id), None)
                if oldest is None:
                    break
                self._trackers.pop(oldest).close()
        self._trackers.move_to_end(train.id)
        return tracker

    def begin_attempt(self, train: Train) -> None:
        """A new attempt is about to start: its output is read afresh."""
        self._told.pop(train.id, None)
        if train.id in self._trackers:
            self._trackers[train.id].begin_attempt(train.attempt, self._clock())

    def progress(self, train: Train) -> dict[str, Any]:
        """Return the progress object of the contract."""
        if train.id not in self._live and train.status not in HOLDING and train.progress:
            return dict(train.progress)
        if train.status is Status.CREATED or (train.status is Status.QUEUED and train.attempt <= 1):
            return empty_progress()
        return self.tracker(train).progress(self._clock(), job_clock(train))

    def report(self, train: Train, report: Any) -> None:
        """Take in what the code reports by itself."""
        self.tracker(train).report(report, self._clock())
        self.mark(train.id)

    def mark(self, train_id: int) -> None:
        """The train's progress may have changed: tell it soon."""
        self._dirty.add(train_id)
        self._wake.set()

    def log_path(self, train: Train) -> Path:
        return self._storage.log_path(train.owner, train.id)

    async def log_grown(self, train_id: int, seconds: float) -> None:
        """Wait until the log has grown, or ``seconds`` are over."""
        try:
            await asyncio.wait_for(self._log_event(train_id).wait(), seconds)
        except TimeoutError:
            return

    def _log_event(self, train_id: int) -> asyncio.Event:
        return self._log_changed.setdefault(train_id, asyncio.Event())

    def _tell_log(self, train_id: int) -> None:
        event = self._log_changed.pop(train_id, None)
        if event is not None:
            event.set()

    def _catch_up(self, train: Train, tracker: Tracker) -> None:
        """Read the end of the log of the current attempt again; series are kept on disk and need no replay."""
        now = self._clock()
        tracker.begin_attempt(train.attempt, now)
        path = self.log_path(train)
        try:
            size = path.stat().st_size
            with path.open("rb") as log:
                log.seek(max(train.log_offset, size - REPLAY_BYTES))
                while chunk := log.read(CHUNK):
                    tracker.feed_log(chunk, now, replay=True)
        except FileNotFoundError:
            return
        self._unread.add(train.id)

    async def _pump(self, train: Train, tracker: Tracker) -> None:
        path = self.log_path(train)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            while True:
                have = os.fstat(descriptor).st_size - train.log_offset
                try:
                    await self._copy(train, tracker, descriptor, self._runtime.log(train.workload, max(have, 0)))
                    return
                except RuntimeUnavailable as exc:
                    self._log.warning("The log of %s broke off (%s); again in a moment", train.workload, exc.message)
                    await asyncio.sleep(0.5)
        finally:
            os.close(descriptor)
            self._tell_log(train.id)

    async def _copy(self, train: Train, tracker: Tracker, descriptor: int, source: AsyncIterator[bytes]) -> None:
        async for data in source:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            for start in range(0, len(data), CHUNK):
                tracker.feed_log(data[start : start + CHUNK], self._clock())
                if len(data) > CHUNK:
                    await asyncio.sleep(0)
            self.mark(train.id)
            self._tell_log(train.id)

    async def _watch_loop(self) -> None:
        """Watch the output folders of all running jobs with one watcher, set up anew when they change."""
        while True:
            self._rewatch.clear()
            folders = {self._storage.output_folder(owner, train_id): train_id for train_id, owner in self._live.items()}
            watched = {folder: train_id for folder, train_id in folders.items() if folder.is_dir()}
            self._unread.update(watched.values())
            self._wake.set()
            if not watched:
                await self._rewatch.wait()
                continue
            by_text = {str(folder): train_id for folder, train_id in watched.items()}
            async for changes in awatch(
                *watched, watch_filter=None, debounce=60, step=15, rust_timeout=1000, stop_event=self._rewatch  # type: ignore[arg-type]
            ):
                for _, path in changes:
                    train_id = _owner_of(path, by_text)
                    if train_id is not None:
                        self._unread.add(train_id)
                self._wake.set()

    async def _publish_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._publish()
            except Exception:
                self._log.exception("Telling progress failed")
            await asyncio.sleep(PUBLISH_SECONDS)

    async def _publish(self) -> None:
        unread, self._unread = self._unread, set()
        for train_id in unread:
            tracker = self._trackers.get(train_id)
            if tracker is not None:
                await self._read_events(train_id, tracker)
                self._dirty.add(train_id)
        dirty, self._dirty = self._dirty, set()
        events = []
        loop_time = asyncio.get_running_loop().time()
        for train in self._store.find(Train, id=list(dirty & self._live.keys())) if dirty else ():
            progress = self.progress(train)
            told = {key: value for key, value in progress.items() if key not in _TICKING}
            if self._told.get(train.id) == told:
                continue
            self._told[train.id] = told
            data = {"kind": "train", "id": train.id, "state": train.state, "progress": progress}
            events.append((train.owner, "progress", data))
            if loop_time - self._saved.get(train.id, 0.0) > SAVE_SECONDS:
                self._saved[train.id] = loop_time
                self._store.save_progress(train.id, progress)
        if events:
            self._store.add_events(events)

    async def _read_events(self, train_id: int, tracker: Tracker) -> None:
        while tracker.read_events(self._clock()):
            await asyncio.sleep(0)


_TICKING = frozenset({"elapsed_seconds", "eta_seconds", "updated_at", "rate"})


def job_clock(train: Train) -> JobClock:
    """Return what the readers must know of a job's times."""
    return JobClock(
        state=str(train.status),
        started_at=train.started_at,
        finished_at=train.finished_at,
        paused_seconds=train.paused_seconds,
        paused_since=train.paused_at,
    )


def empty_progress() -> dict[str, Any]:
    """Return the progress of a job of which nothing is known."""
    names = ("percent", "epoch", "epochs", "step", "steps", "loss", "elapsed_seconds", "eta_seconds", "rate", "source",
             "updated_at")
    return {**dict.fromkeys(names), "metrics": {}}


def _owner_of(path: str, folders: dict[str, int]) -> int | None:
    folder = path
    while len(folder) > 1:
        if folder in folders:
            return folders[folder]
        folder = os.path.dirname(folder)
    return None
