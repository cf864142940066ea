"""The records that AirHub keeps, frozen; a change is a new row version made by the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airhub.domain.lifecycle import Status, Target
from airhub.domain.workload import WorkloadName

KINDS = ("notebook", "debug", "train", "inference")
"""What an image may be used for."""


@dataclass(frozen=True)
class Record:
    """What every record has. ``row_version`` guards changes against each other."""

    id: int
    created_at: datetime
    updated_at: datetime
    row_version: int


@dataclass(frozen=True)
class Image(Record):
    """An entry of the catalogue: what users may run."""

    name: str
    reference: str
    kinds: tuple[str, ...]
    gpu: bool
    description: str


@dataclass(frozen=True)
class Template(Record):
    """A named recipe; what it says lies in its versions."""

    owner: str
    name: str
    description: str
    version: int
    source_train_id: int | None


@dataclass(frozen=True)
class TemplateVersion:
    """One version of a template, never changed once written."""

    template_id: int
    version: int
    created_at: datetime
    image_id: int
    code_path: str
    tree: str
    """Hash of the code snapshot."""
    model_path: str
    model: str | None
    """Hash of the kept copy of the model file."""
    data_path: str
    command: tuple[str, ...]
    parameters: Mapping[str, Any]
    gpus: int
    manifest: Mapping[str, Any]
    """What ``template.json`` beside the code says, checked."""
    source_train_id: int | None
    source_checkpoint: str | None


@dataclass(frozen=True)
class Runnable(Record):
    """A record that the reconciler runs."""

    owner: str
    name: str
    description: str
    status: Status
    target: Target
    state: str
    reason: str | None
    message: str | None
    stop_reason: str | None
    attempt: int
    restarts: int
    max_restarts: int
    queued_at: datetime | None
    not_before: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    gpus: int
    cpus: float | None
    memory_bytes: int | None
    gpu_ids: tuple[str, ...]
    priority: int
    grace_seconds: float
    image_id: int
    image_reference: str

    @property
    def kind(self) -> str:
        raise NotImplementedError

    @property
    def workload(self) -> WorkloadName:
        return WorkloadName(self.kind, self.id, self.attempt)

    @property
    def tasks(self) -> int:
        return 1


@dataclass(frozen=True)
class Train(Runnable):
    """A training job."""

    template_id: int | None
    template_version: int | None
    tree: str
    command: tuple[str, ...]
    manifest: Mapping[str, Any]
    dataset: str
    model_path: str
    model: str | None
    checkpoint_of: int | None
    checkpoint: str | None
    dist: bool
    nodes: int
    processes: int
    parameters: Mapping[str, Any]
    deadline_seconds: float | None
    mounts: Mapping[str, Any]
    """Host paths of what the user named, as they were when the job was made: re-checked at each start."""
    resume: str | None
    """The checkpoint (its name) from which the current attempt goes on."""
    progress: Mapping[str, Any]
    traceback: Mapping[str, Any] | None
    paused_at: datetime | None
    paused_seconds: float
    log_offset: int
    """Where in the log the current attempt begins, bytes."""

    @property
    def kind(self) -> str:
        return "train"

    @property
    def tasks(self) -> int:
        return self.nodes


@dataclass(frozen=True)
class Inference(Runnable):
    """A model that answers requests."""

    train_id: int | None
    checkpoint: str | None
    tree: str
    code_path: str
    model_path: str
    model: str | None
    command: tuple[str, ...]
    port: int | None
    replicas: int
    idle_timeout_seconds: float | None
    timeout_seconds: float
    sample: Any
    last_request_at: datetime | None
    secret: str
    """What the service shows to the model's server so that it is let in."""
    revision: int
    """Counts the models that the endpoint has served: a swap makes the next."""
    revisions: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def kind(self) -> str:
        return "inference"

    @property
    def tasks(self) -> int:
        return self.replicas


@dataclass(frozen=True)
class Workspace(Record):
    """A notebook or debug: a named server of its owner, run by the Hub."""

    kind: str
    owner: str
    name: str
    description: str
    server_name: str
    image_id: int
    image_reference: str
    dataset: str
    code: str
    gpus: int
    cpus: float | None
    memory_bytes: int | None
    gpu_ids: tuple[str, ...]
    status: Status
    target: Target
    state: str
    reason: str | None
    message: str | None
    started_at: datetime | None
    last_activity: datetime | None
    attempt: int
    extra: Mapping[str, Any]
    """For debugs: ``draft_of`` (template id), ``train_id`` (its twin), ``environment``, ``mounts``."""


@dataclass(frozen=True)
class EventRow:
    """One thing that happened, as ``/events`` tells it; ``sequence`` grows by the order of commit."""

    sequence: int
    owner: str
    event: str
    data: Mapping[str, Any]
    created_at: datetime
