"""What a runtime is asked to run and what it says of it; shared by kinds, reconciler and runtimes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

LABEL_KIND = "airhub.kind"
LABEL_ID = "airhub.id"
LABEL_ATTEMPT = "airhub.attempt"
LABEL_OWNER = "airhub.owner"
LABEL_TASK = "airhub.task"
LABEL_HOST = "airhub.instance"
"""Which AirHub installation made it: two of them may share an engine without touching each other's containers."""


@dataclass(frozen=True, order=True)
class WorkloadName:
    """The deterministic name of one attempt of one record: the same before and after any crash."""

    kind: str
    id: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.id}-{self.attempt}"


@dataclass(frozen=True)
class Mount:
    """A host folder or file at a place in the container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class WorkloadSpec:
    """One attempt as a runtime can run it: ``tasks`` containers alike but for their index."""

    name: WorkloadName
    owner: str
    image: str
    command: tuple[str, ...]
    """Command line; empty means the image's own."""
    env: Mapping[str, str] = field(default_factory=dict)
    task_env: tuple[Mapping[str, str], ...] = ()
    """Extra variables of each task, by index; may be shorter than ``tasks``. ``{task:0}`` in a value is replaced by
    the address under which the other tasks reach task 0."""
    mounts: tuple[Mount, ...] = ()
    working_dir: str = "/"
    tasks: int = 1
    cpus: float | None = None
    memory_bytes: int | None = None
    shm_bytes: int | None = None
    pids_limit: int | None = 4096
    gpu_ids: tuple[tuple[str, ...], ...] = ()
    """Device ids of each task, by index; empty without GPUs."""
    private_network: bool = False
    """The tasks reach each other, and nobody else them, by a network of their own (distributed jobs)."""
    port: int | None = None
    """A port that the service will connect to at each task's ``address``."""
    restartable: bool = False
    """Tasks are replaced one by one (inference replicas): launching again starts the missing ones."""
    labels: Mapping[str, str] = field(default_factory=dict)


class Phase(enum.StrEnum):
    """What a runtime sees of a task."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    FROZEN = "frozen"
    EXITED = "exited"


@dataclass(frozen=True)
class TaskState:
    """One task of a workload as the runtime sees it now."""

    index: int
    phase: Phase
    exit_code: int | None = None
    """Exit status; 128 + signal number when a signal ended it."""
    out_of_memory: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    address: str | None = None
    """host:port of ``WorkloadSpec.port`` as the service reaches it, while it runs."""
    message: str | None = None
    """What the engine said when the task could not run."""


@dataclass(frozen=True)
class Observation:
    """All tasks of a workload; no tasks when the runtime knows nothing of it."""

    name: WorkloadName
    tasks: tuple[TaskState, ...] = ()

    @property
    def phase(self) -> Phase:
        """The workload's phase: exited as soon as every task is, or one failed; frozen only when all are."""
        phases = {task.phase for task in self.tasks}
        if not phases or phases == {Phase.ABSENT}:
            return Phase.ABSENT
        if self.first_failure is not None or phases <= {Phase.EXITED}:
            return Phase.EXITED
        if phases <= {Phase.FROZEN, Phase.EXITED}:
            return Phase.FROZEN
        if Phase.RUNNING in phases or Phase.FROZEN in phases:
            return Phase.RUNNING
        return Phase.CREATED

    @property
    def first_failure(self) -> TaskState | None:
        """The task that failed first, whose reason is the workload's."""
        failed = [t for t in self.tasks if t.phase is Phase.EXITED and (t.exit_code != 0 or t.out_of_memory)]
        return min(failed, key=lambda t: (t.finished_at is None, t.finished_at, t.index), default=None)

    @property
    def all_gone(self) -> bool:
        """Whether no task runs any more."""
        return all(task.phase in (Phase.EXITED, Phase.ABSENT) for task in self.tasks)
