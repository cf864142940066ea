"""The contract between AirHub and what runs containers; plug-ins implement ``Runtime``.

A runtime knows nothing of trains or users: it runs workloads, says what it sees, and forgets nothing that it
started. Every verb is idempotent, because the reconciler repeats it after a crash: what is already so is
success, and "already gone" is success for ``stop``, ``kill`` and ``remove``. All methods are called from the service's
event loop and must not block it; calls for different workloads may overlap, calls for one workload never do
(but for ``log``).
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from traitlets import Unicode
from traitlets.config import LoggingConfigurable

from airhub.domain.workload import Observation, WorkloadName, WorkloadSpec


class Ability(enum.StrEnum):
    """What a runtime may or may not be able to do."""

    FREEZE = "freeze"
    GPUS = "gpus"
    TASKS = "tasks"
    """More than one task in a workload."""
    LIMITS = "limits"
    """CPU and memory limits are enforced."""
    ISOLATION = "isolation"
    """Users' code is kept apart from the host and from each other."""


@dataclass(frozen=True)
class RuntimeEvent:
    """Something happened to a workload: look at it again. ``None`` as name: look at all."""

    name: WorkloadName | None
    action: str
    """``start``, ``exit``, ``oom``, ``freeze``, ``thaw``, ``remove`` or ``reconnected``."""


class Runtime(LoggingConfigurable):
    """Runs workloads. Subclasses are found by the entry point group ``airhub.runtimes``."""

    abilities: frozenset[Ability] = frozenset()

    instance = Unicode(
        "airhub",
        help="""Name of this AirHub installation among those that share an engine.

        It is written on everything that the runtime makes, and the runtime sees only what carries it. Lower-case
        letters, digits and dashes. Changing it orphans what runs.
        """,
    ).tag(config=True)

    async def open(self) -> None:
        """Connect. Called once, before any other method.

        Raises ``RuntimeUnavailable`` with a sentence for the operator when nothing answers; the service then starts
        all the same and calls again with back-off.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of connections and tasks. Workloads keep running. Never raises."""
        raise NotImplementedError

    async def launch(self, spec: WorkloadSpec) -> None:
        """Make sure that every task of ``spec`` exists and runs.

        A task that exists already, running, frozen or exited, is left as it is (it may be a launch repeated after a
        crash), but one that was only created is started. With ``spec.restartable`` an exited task is
        replaced. All tasks or none: when one cannot be started those that this call made are removed before the error
        is raised.

        Raises ``ImageMissing``, ``GpuUnavailable``, ``PathChanged`` (a mount source is gone), else
        ``RuntimeUnavailable`` when the engine does not answer, ``InvalidRequest`` when it refuses the spec for good.
        """
        raise NotImplementedError

    async def observe(self, name: WorkloadName) -> Observation:
        """Say what is there now. Raises ``RuntimeUnavailable`` when the engine does not answer: that is not absence."""
        raise NotImplementedError

    async def stop(self, name: WorkloadName, grace_seconds: float) -> None:
        """SIGTERM to every task's first process, SIGKILL ``grace_seconds`` later to what is left; thaw frozen ones first
        so that their handler runs. Return when all have exited. Cancelling the call leaves the kill to a repeated call."""
        raise NotImplementedError

    async def kill(self, name: WorkloadName) -> None:
        """SIGKILL every task at once, with all its processes."""
        raise NotImplementedError

    async def freeze(self, name: WorkloadName) -> None:
        """Stop every task's processes where they stand; all or none. ``NotSupported`` without ``Ability.FREEZE``."""
        raise NotImplementedError

    async def thaw(self, name: WorkloadName) -> None:
        """Let frozen tasks go on."""
        raise NotImplementedError

    async def remove(self, name: WorkloadName) -> None:
        """Forget the workload: kill what runs, remove tasks, their networks and the runtime's own notes of them."""
        raise NotImplementedError

    async def list(self) -> Sequence[Observation]:
        """Return all workloads of this ``instance``, running or not."""
        raise NotImplementedError

    def events(self) -> AsyncIterator[RuntimeEvent]:
        """Yield events for ever, reconnecting by itself; after a gap the first event has no name.

        An exit must be yielded within 50 ms of the engine's knowing.
        """
        raise NotImplementedError

    def log(self, name: WorkloadName, skip_bytes: int = 0) -> AsyncIterator[bytes]:
        """Yield the workload's output from byte ``skip_bytes`` on, as it comes, until its tasks have ended.

        Standard output and error in the order in which they were written. With several tasks their lines are merged,
        each line led by ``[<index>] ``. The same bytes at the same offsets on every call, for one task, so that a reader can
        go on after a crash; lost output (an engine that dropped its log) is skipped silently.
        """
        raise NotImplementedError

    async def image_available(self, reference: str) -> bool:
        """Whether ``launch`` would find the image without pulling it."""
        raise NotImplementedError

    async def pull(self, reference: str) -> AsyncIterator[str]:
        """Pull an image, yielding progress lines for people. Raises ``ImageMissing`` when no registry has it."""
        raise NotImplementedError
        yield ""

    async def gpus(self) -> Sequence[str]:
        """Device ids that ``WorkloadSpec.gpu_ids`` may name; empty without GPUs."""
        return ()

    async def capacity(self) -> tuple[float, int]:
        """CPUs and bytes of memory that workloads can use."""
        raise NotImplementedError
