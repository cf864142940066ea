"""The only code that changes a job's status and starts or stops what runs: it makes the world agree with the records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from airhub.domain.lifecycle import FINAL, HOLDING, Action, Event, Outcome, Status, Step, Target, perceive, step
from airhub.domain.models import Runnable
from airhub.domain.workload import Observation, Phase, WorkloadName, WorkloadSpec
from airhub.errors import GpuUnavailable, ImageMissing, InvalidRequest, PathChanged, RuntimeUnavailable
from airhub.runtimes.base import Runtime
from airhub.scheduler import Scheduler
from airhub.store import StaleRecord, Store
from airhub.workqueue import WorkQueue

RESYNC_SECONDS = 60.0
"""How often everything that runs is looked at again although no event asked for it; a safety net."""
UNCLAIMED_GRACE_SECONDS = 60.0
"""A workload that no record claims is removed after this long."""
DELETE_GRACE_SECONDS = 5.0
MOST_STEPS = 25

Key = tuple[str, int]


class Driver(Protocol):
    """What the reconciler must know of one kind of job."""

    record_type: type[Runnable]

    async def spec(self, job: Any) -> WorkloadSpec:
        """Return what to run. Raises ``PathChanged`` and the like when it cannot be run as it was made."""

    def adopt(self, job: Any) -> None:
        """Follow what runs: its log, its progress. Called after each launch and for all that run after a restart."""

    async def ready_after(self, job: Any, seen: Observation) -> float | None:
        """Return null when a starting job counts as running, else the seconds after which to look again."""

    async def outcome(self, job: Any, seen: Observation) -> Outcome:
        """Say how the attempt ended, once all that it wrote has been read."""

    def changes(self, job: Any, step: Step, seen: Observation | None, now: datetime) -> Mapping[str, Any]:
        """Return what else changes in the record with this step."""

    def deadline_seconds(self, job: Any, now: datetime) -> float | None:
        """Return how long the job may go on; null for ever, zero or less when it is over."""

    async def moved(self, before: Any, after: Any) -> None:
        """The job came to another status: keep what depends on it in step."""

    async def forget(self, job: Any) -> None:
        """The job is being deleted: remove its files."""


class Reconciler:
    """Moves each job, one worker a job, until what runs is what is wanted."""

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        drivers: Mapping[str, Driver],
        scheduler: Scheduler,
        clock: Callable[[], datetime],
        log: logging.Logger,
    ):
        self.available = False
        self.unavailable_reason: str | None = "AirHub is connecting to its runtime."
        self._store = store
        self._runtime = runtime
        self._drivers = drivers
        self._scheduler = scheduler
        self._clock = clock
        self._log = log
        self._queue = WorkQueue(self._handle, log)
        self._stops: dict[WorkloadName, asyncio.Task[None]] = {}
        self._fresh: set[Key] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._gone: dict[Key, asyncio.Event] = {}

    async def open(self) -> None:
        """Begin to work; returns at once, also while the runtime is away."""
        self._tasks.append(asyncio.create_task(self._connect(), name="reconciler"))

    async def close(self) -> None:
        """Stop working. What runs goes on running."""
        for task in (*self._tasks, *self._stops.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._stops.values(), return_exceptions=True)
        await self._queue.close()

    def hint(self, kind: str, job_id: int) -> None:
        """Something about this job has changed: look at it."""
        self._queue.put((kind, job_id))

    async def settled(self, job: Runnable, seconds: float, until: Callable[[Runnable | None], bool]) -> Runnable | None:
        """Wait at most ``seconds`` for ``until(record)``; return the record as it is then, null when it is gone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            record = self._store.get(type(job), job.id, deleted=True)
            left = deadline - loop.time()
            if until(record) or left <= 0:
                return record
            changed = self._gone.setdefault((job.kind, job.id), asyncio.Event())
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                continue

    def schedule(self) -> None:
        """Let queued jobs start where resources allow."""
        for job, changes in self._scheduler.grants():
            result = step(job, Event.GRANTED, self._clock())
            try:
                self._store.apply(job, {**result.changes, **changes})
            except StaleRecord:
                self._queue.put(("schedule", 0), 0.05)
                continue
            self._fresh.add((job.kind, job.id))
            self.hint(job.kind, job.id)
        delay = self._scheduler.next_look_seconds()
        if delay is not None:
            self._queue.put(("schedule", 0), max(delay, 0.05))

    async def _connect(self) -> None:
        delay = 0.5
        while True:
            try:
                await self._runtime.open()
                await self._recover()
                break
            except RuntimeUnavailable as exc:
                self.unavailable_reason = exc.message
                self._log.error("The runtime does not answer (%s); next try in %.0f s", exc.message, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
        self.available, self.unavailable_reason = True, None
        self._tasks.append(asyncio.create_task(self._listen(), name="runtime events"))
        self._tasks.append(asyncio.create_task(self._resync(), name="resync"))

    async def _recover(self) -> None:
        """After a start: adopt what runs and is claimed, clear what is not, go on with what was wanted."""
        for seen in await self._runtime.list():
            await self._claim(seen)
        for kind, driver in self._drivers.items():
            for job in self._store.find(driver.record_type, status=list(HOLDING)):
                driver.adopt(job)
                self.hint(kind, job.id)
            for target in (Target.RUNNING, Target.DELETED, Target.STOPPED, Target.SUSPENDED):
                for job in self._store.find(driver.record_type, target=target):
                    self.hint(kind, job.id)
        self.schedule()

    async def _claim(self, seen: Observation) -> None:
        driver = self._drivers.get(seen.name.kind)
        if driver is None:
            return
        job = self._store.get(driver.record_type, seen.name.id, deleted=True)
        if job is None:
            self._log.warning("No record claims workload %s: it goes in %.0f s", seen.name, UNCLAIMED_GRACE_SECONDS)
            self._queue.put(("unclaimed", seen.name), UNCLAIMED_GRACE_SECONDS)
        elif job.attempt != seen.name.attempt or job.status not in HOLDING:
            self._log.info("Workload %s is over: removed", seen.name)
            await self._runtime.remove(seen.name)
        else:
            self._log.info("Workload %s is adopted (%s)", seen.name, seen.phase)

    async def _listen(self) -> None:
        while True:
            try:
                async for event in self._runtime.events():
                    if event.name is None:
                        self._hint_all()
                    elif event.name.kind in self._drivers:
                        self.hint(event.name.kind, event.name.id)
            except RuntimeUnavailable as exc:
                self._log.warning("The runtime's events broke off: %s", exc.message)
            await asyncio.sleep(0.5)
            self._hint_all()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            self._hint_all()
            self._store.prune()

    def _hint_all(self) -> None:
        for kind, driver in self._drivers.items():
            for job in self._store.find(driver.record_type, status=list(HOLDING)):
                self.hint(kind, job.id)
        self._queue.put(("schedule", 0))

    async def _handle(self, key: tuple[str, Any]) -> None:
        if key[0] == "schedule":
            self.schedule()
        elif key[0] == "unclaimed":
            await self._remove_unclaimed(key[1])
        else:
            await self._reconcile(key[0], key[1])
            changed = self._gone.pop(key, None)
            if changed is not None:
                changed.set()

    async def _remove_unclaimed(self, name: WorkloadName) -> None:
        if self._store.get(self._drivers[name.kind].record_type, name.id, deleted=True) is None:
            await self._runtime.remove(name)

    async def _reconcile(self, kind: str, job_id: int) -> None:
        driver = self._drivers[kind]
        for _ in range(MOST_STEPS):
            job = self._store.get(driver.record_type, job_id, deleted=True)
            if job is None:
                return
            if job.target is Target.DELETED and job.status not in HOLDING | {Status.QUEUED}:
                await self._delete(driver, job)
                return
            seen, event = await self._look(job)
            if event is None:
                seconds = driver.deadline_seconds(job, self._clock()) if job.status in HOLDING else None
                if seconds is None:
                    return
                if seconds > 0 or job.status is Status.STOPPING:
                    self._queue.put((kind, job_id), max(seconds, 0.05)) if seconds > 0 else None
                    return
                event = Event.DEADLINE
            if event is Event.SEEN_RUNNING and job.status is Status.STARTING:
                assert seen is not None
                again = await driver.ready_after(job, seen)
                if again is not None:
                    self._queue.put((kind, job_id), again)
                    return
            if not await self._take(driver, job, event, seen):
                return
        self._queue.put((kind, job_id), 1.0)

    async def _look(self, job: Runnable) -> tuple[Observation | None, Event | None]:
        key = (job.kind, job.id)
        if job.status is Status.STARTING and key in self._fresh:
            self._fresh.discard(key)
            seen = Observation(job.workload)
        elif job.status in HOLDING:
            seen = await self._runtime.observe(job.workload)
        else:
            seen = None
        return seen, perceive(job, seen)

    async def _take(self, driver: Driver, job: Runnable, event: Event, seen: Observation | None) -> bool:
        """Make one step; return whether there may be more to do at once."""
        outcome = None
        if event in (Event.SEEN_EXITED, Event.SEEN_ABSENT) and job.status is not Status.STARTING or (
            event is Event.SEEN_EXITED
        ):
            assert seen is not None
            outcome = await driver.outcome(job, seen)
        return await self._apply(driver, job, step(job, event, self._clock(), outcome), seen)

    async def _apply(self, driver: Driver, job: Runnable, result: Step, seen: Observation | None) -> bool:
        changes = {**result.changes, **driver.changes(job, result, seen, self._clock())}
        try:
            after = self._store.apply(job, changes)
        except StaleRecord:
            return True
        if after.status is not job.status:
            self._log.info("%s %s: %s -> %s%s", job.kind, job.id, job.status, after.status,
                           f" ({after.reason})" if after.reason else "")
            await driver.moved(job, after)
        more = bool(changes) or Action.FREEZE in result.actions or Action.THAW in result.actions
        for action in result.actions:
            more = await self._act(driver, job, after, action) and more
        return more or Action.LAUNCH in result.actions and after.status is Status.STARTING

    async def _act(self, driver: Driver, before: Runnable, job: Runnable, action: Action) -> bool:
        if action is Action.LAUNCH:
            return await self._launch(driver, job)
        if action is Action.TERMINATE:
            await self._terminate(job)
            return False
        if action is Action.REMOVE:
            await self._runtime.remove(before.workload)
        elif action is Action.FREEZE:
            await self._runtime.freeze(job.workload)
        elif action is Action.THAW:
            await self._runtime.thaw(job.workload)
        elif action is Action.SCHEDULE:
            self.schedule()
        return True

    async def _launch(self, driver: Driver, job: Runnable) -> bool:
        try:
            spec = await driver.spec(job)
            await self._runtime.launch(spec)
        except (ImageMissing, GpuUnavailable, PathChanged) as exc:
            return await self._fail_launch(driver, job, Outcome(exc.reason, exc.message))
        except InvalidRequest as exc:
            return await self._fail_launch(driver, job, Outcome("launch_failed", exc.message))
        except RuntimeUnavailable as exc:
            self._store.update(job, lambda now: {"message": f"Waits for the runtime: {exc.message}"})
            raise
        driver.adopt(job)
        return True

    async def _fail_launch(self, driver: Driver, job: Runnable, outcome: Outcome) -> bool:
        current = self._store.get(driver.record_type, job.id, deleted=True)
        if current is None or current.status not in (Status.STARTING, Status.QUEUED):
            return True
        result = step(current, Event.LAUNCH_FAILED, self._clock(), outcome)
        return await self._apply(driver, current, result, None)

    async def _terminate(self, job: Runnable) -> None:
        name = job.workload
        if name in self._stops:
            if job.target is Target.DELETED:
                await self._runtime.kill(name)
            return
        grace = min(job.grace_seconds, DELETE_GRACE_SECONDS) if job.target is Target.DELETED else job.grace_seconds
        self._stops[name] = asyncio.create_task(self._stop(job, grace), name=f"stop {name}")

    async def _stop(self, job: Runnable, grace_seconds: float) -> None:
        delay = 0.0
        try:
            await self._runtime.stop(job.workload, grace_seconds)
        except RuntimeUnavailable as exc:
            self._log.warning("Stopping %s failed: %s", job.workload, exc.message)
            delay = 1.0
        finally:
            self._stops.pop(job.workload, None)
        self._queue.put((job.kind, job.id), delay)

    async def _delete(self, driver: Driver, job: Runnable) -> None:
        if job.attempt:
            await self._runtime.remove(job.workload)
        await driver.forget(job)
        self._store.delete(job)
        self._log.info("%s %s is deleted", job.kind, job.id)
        self.schedule()


def ended_outcome(seen: Observation) -> Outcome:
    """Say how a workload ended as far as exit codes tell."""
    if seen.phase is Phase.ABSENT:
        return Outcome("engine_lost", "The engine no longer knows the container: it was removed from outside or lost.")
    failure = seen.first_failure
    if failure is None:
        return Outcome(None, None, 0)
    where = f"Rank {failure.index} of {len(seen.tasks)}: " if len(seen.tasks) > 1 else ""
    code = failure.exit_code
    if failure.out_of_memory:
        return Outcome(
            "out_of_memory",
            f"{where}It used more memory than its limit and was ended. Raise memory_bytes or lower the batch size.",
            code,
        )
    if code in (137, 143, 255) or code is None:
        return Outcome("killed", f"{where}It was ended from outside (exit code {code}).", code)
    return Outcome("exit_code", f"{where}The code ended with exit code {code}; the log says why.", code)


def is_over(job: Runnable | None) -> bool:
    """Whether a job has come to an end, or is gone."""
    return job is None or job.status in FINAL
