"""How trains are run: what the reconciler must know of this kind, from mounts to the reason of an end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from airhub.domain import kinds
from airhub.domain.lifecycle import FINAL, Action, Outcome, Status, Step
from airhub.domain.models import Train
from airhub.domain.workload import Mount, Observation, Phase, WorkloadSpec
from airhub.errors import PathChanged
from airhub.monitor import Monitor
from airhub.reconciler import ended_outcome
from airhub.scheduler import Scheduler
from airhub.storage import Storage
from airhub.store import Store, tables
from airhub.tracebacks import last_traceback

LOG_TAIL_BYTES = 1 << 18


class TrainDriver:
    """Runs training jobs."""

    record_type = Train

    def __init__(
        self,
        store: Store,
        storage: Storage,
        monitor: Monitor,
        scheduler: Scheduler,
        report_url: Callable[[int], str],
        report_secret: bytes,
        clock: Callable[[], datetime],
        log: logging.Logger,
    ):
        self._store = store
        self._storage = storage
        self._monitor = monitor
        self._scheduler = scheduler
        self._report_url = report_url
        self._report_secret = report_secret
        self._clock = clock
        self._log = log

    async def spec(self, job: Train) -> WorkloadSpec:
        mounts = await asyncio.to_thread(self._prepare, job)
        return kinds.train_spec(job, mounts, self._report_url(job.id), {})

    def adopt(self, job: Train) -> None:
        self._monitor.follow(job)

    async def ready_after(self, job: Train, seen: Observation) -> float | None:
        return None

    async def outcome(self, job: Train, seen: Observation) -> Outcome:
        await self._monitor.drain(job)
        outcome = ended_outcome(seen)
        if outcome.reason == "exit_code":
            found = await asyncio.to_thread(self._find_traceback, job)
            if found is not None:
                if _disk_full(found.last_line):
                    return Outcome(
                        "disk_full", f"{found.last_line} Free some space, or let the job write less, and start it again.",
                        outcome.exit_code,
                    )
                where = f" (line {found.line} of {found.file})" if found.file else ""
                return Outcome("exit_code", f"{found.last_line}{where}", outcome.exit_code)
        return outcome

    def changes(self, job: Train, step: Step, seen: Observation | None, now: datetime) -> Mapping[str, Any]:
        status = step.changes.get("status")
        if status is None or status is job.status:
            return {}
        changes: dict[str, Any] = {}
        if status is Status.QUEUED:
            newest = self._newest_checkpoint(job)
            changes |= {"resume": newest, "paused_at": None, "paused_seconds": 0.0, "traceback": None, "progress": {}}
            changes["log_offset"] = self._log_size(job)
        if status in (Status.RUNNING, Status.PAUSED) and job.started_at is None or (
            status in FINAL and job.started_at is None
        ):
            changes["started_at"] = _started(seen) or (now if status not in FINAL else None)
        if status is Status.PAUSED:
            changes["paused_at"] = now
        elif job.paused_at is not None:
            changes["paused_at"] = None
            changes["paused_seconds"] = job.paused_seconds + (now - job.paused_at).total_seconds()
        if status in FINAL | {Status.SUSPENDED}:
            ended = _finished(seen) or now
            changes["finished_at"] = ended if status in FINAL else None
            if step.changes.get("reason") == "exit_code":
                found = self._find_traceback(job)
                changes["traceback"] = None if found is None else found.as_dict()
            changes["progress"] = self._last_progress(job, status, changes)
        return changes

    def deadline_seconds(self, job: Train, now: datetime) -> float | None:
        if job.deadline_seconds is None or job.started_at is None or job.status is Status.STOPPING:
            return None
        paused = job.paused_seconds
        if job.paused_at is not None:
            paused += (now - job.paused_at).total_seconds()
        return job.deadline_seconds + paused - (now - job.started_at).total_seconds()

    async def moved(self, before: Train, after: Train) -> None:
        if after.status is Status.QUEUED:
            self._monitor.begin_attempt(after)
        if before.status in (Status.RUNNING, Status.STOPPING, Status.PAUSED) and before.started_at is not None:
            if after.status not in (Status.RUNNING, Status.STOPPING, Status.PAUSED):
                seconds = (self._clock() - before.started_at).total_seconds()
                self._scheduler.charge(after.owner, max(seconds, 0.0))
        if after.status in FINAL | {Status.SUSPENDED, Status.QUEUED} and before.attempt:
            self._store.put(
                tables.attempts,
                kind="train",
                job_id=before.id,
                number=before.attempt,
                created_at=before.queued_at or before.created_at,
                started_at=before.started_at,
                finished_at=after.finished_at or self._clock(),
                exit_code=after.exit_code,
                reason=after.reason,
                message=after.message,
                resume=before.resume,
                gpu_ids=list(before.gpu_ids),
                log_offset=before.log_offset,
            )
        if after.status in FINAL:
            await asyncio.to_thread(self._retain, after)

    async def forget(self, job: Train) -> None:
        self._monitor.forget(job.id)
        await asyncio.to_thread(self._storage.remove_train, job.owner, job.id)

    def report_token(self, train_id: int, attempt: int) -> str:
        """Return the token with which an attempt's code may report its progress."""
        text = f"report:{train_id}:{attempt}".encode()
        return f"{train_id}.{attempt}." + hmac.new(self._report_secret, text, hashlib.sha256).hexdigest()

    def _prepare(self, job: Train) -> list[Mount]:
        """Make the folders of an attempt and check again what the user named."""
        folder = self._storage.prepare_train(job.owner, job.id)
        token = folder / "report" / "token"
        self._storage.write_private(token, self.report_token(job.id, job.attempt))
        mounts = [
            Mount(str(self._storage.tree_path(job.tree)), kinds.CODE),
            Mount(str(self._storage.output_folder(job.owner, job.id)), kinds.OUTPUT, read_only=False),
            Mount(str(token), kinds.REPORT_TOKEN),
        ]
        for target, name in ((kinds.DATASET, "dataset"), (kinds.MODEL, "model")):
            named = job.mounts.get(name)
            if named is not None:
                mounts.append(Mount(str(self._storage.recheck(named)), target))
        if job.model is not None:
            kept = self._storage.model_path(job.model)
            if not kept.exists():
                raise PathChanged("The kept copy of the model is gone from AirHub's state folder.")
            mounts.append(Mount(str(kept), kinds.MODEL))
        return mounts

    def _newest_checkpoint(self, job: Train) -> str | None:
        if not job.attempt:
            return None
        found = self._storage.checkpoints(
            self._storage.output_folder(job.owner, job.id), _patterns(job.manifest)
        )
        return max(found, key=lambda item: (item.step if item.step is not None else -1, item.saved_at)).name if found else None

    def _log_size(self, job: Train) -> int:
        try:
            return self._storage.log_path(job.owner, job.id).stat().st_size
        except FileNotFoundError:
            return 0

    def _find_traceback(self, job: Train) -> Any:
        try:
            with self._storage.log_path(job.owner, job.id).open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(job.log_offset, size - LOG_TAIL_BYTES))
                return last_traceback(log.read(LOG_TAIL_BYTES))
        except FileNotFoundError:
            return None

    def _last_progress(self, job: Train, status: Status, changes: Mapping[str, Any]) -> dict[str, Any]:
        from dataclasses import replace

        known = {key: changes[key] for key in ("started_at", "paused_at", "paused_seconds") if key in changes}
        ended = replace(job, status=status, finished_at=changes.get("finished_at"), **known)
        tracker = self._monitor.tracker(ended)
        from airhub.monitor import job_clock

        return tracker.progress(self._clock(), job_clock(ended))

    def _retain(self, job: Train) -> None:
        rules = job.manifest.get("checkpoints") or {}
        if rules.get("keep_best") is None and rules.get("keep_last") is None:
            return
        tracker = self._monitor.tracker(job)
        self._storage.prune_checkpoints(
            self._storage.output_folder(job.owner, job.id),
            rules,
            lambda item: tracker.metrics_at(item.saved_at.timestamp(), item.step, item.epoch),
        )


def _patterns(manifest: Mapping[str, Any]) -> tuple[str, ...] | None:
    patterns = (manifest.get("checkpoints") or {}).get("patterns")
    return tuple(patterns) if patterns else None


def _started(seen: Observation | None) -> datetime | None:
    return min((task.started_at for task in seen.tasks if task.started_at), default=None) if seen else None


def _finished(seen: Observation | None) -> datetime | None:
    if seen is None or seen.phase is not Phase.EXITED:
        return None
    return max((task.finished_at for task in seen.tasks if task.finished_at), default=None)


def _disk_full(line: str) -> bool:
    return "No space left on device" in line or "Disk quota exceeded" in line


__all__ = ["Action", "TrainDriver"]
