"""Records as clients see them: the JSON objects of the HTTP contract."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from airhub.domain.lifecycle import Status
from airhub.domain.models import Image, Inference, Runnable, Template, TemplateVersion, Train, Workspace
from airhub.domain.resources import Wait

Json = dict[str, Any]


def moment(value: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC, to the millisecond, with a Z."""
    return None if value is None else value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


def image_json(image: Image, available: bool | None) -> Json:
    return {
        "id": image.id,
        "name": image.name,
        "reference": image.reference,
        "kinds": list(image.kinds),
        "gpu": image.gpu,
        "available": available,
        "description": image.description,
        "created_at": moment(image.created_at),
        "updated_at": moment(image.updated_at),
    }


def workspace_json(workspace: Workspace, url: str | None) -> Json:
    return {
        **_common(workspace),
        "image_id": workspace.image_id,
        "dataset": workspace.dataset,
        "code": workspace.code,
        "gpus": workspace.gpus,
        "cpus": workspace.cpus,
        "memory_bytes": workspace.memory_bytes,
        "url": url,
        "server_name": workspace.server_name,
        "started_at": moment(workspace.started_at),
        "last_activity": moment(workspace.last_activity),
        "template_id": workspace.extra.get("draft_of"),
        "train_id": workspace.extra.get("train_id"),
    }


def template_json(template: Template, version: TemplateVersion) -> Json:
    return {
        "id": template.id,
        "name": template.name,
        "description": template.description,
        "owner": template.owner,
        "state": "created",
        "reason": None,
        "message": None,
        "created_at": moment(template.created_at),
        "updated_at": moment(template.updated_at),
        **version_json(version),
        "source_train_id": template.source_train_id,
    }


def version_json(version: TemplateVersion) -> Json:
    return {
        "version": version.version,
        "created_at": moment(version.created_at),
        "image_id": version.image_id,
        "code_path": version.code_path,
        "model_path": version.model_path,
        "data_path": version.data_path,
        "command": list(version.command),
        "parameters": dict(version.parameters),
        "gpus": version.gpus,
        "source_train_id": version.source_train_id,
        "source_checkpoint": version.source_checkpoint,
        "tree": version.tree,
    }


def train_json(train: Train, progress: Mapping[str, Any], wait: Wait | None) -> Json:
    body = {
        **_common(train),
        **_limits(train),
        "template_id": train.template_id,
        "template_version": train.template_version,
        "dataset": train.dataset,
        "dist": train.dist,
        "nodes": train.nodes,
        "processes": train.processes,
        "parameters": dict(train.parameters),
        "command": list(train.command),
        "checkpoint_of": train.checkpoint_of,
        "checkpoint": train.checkpoint,
        "model_path": train.model_path,
        "priority": train.priority,
        "max_restarts": train.max_restarts,
        "restarts": train.restarts,
        "deadline_seconds": train.deadline_seconds,
        "grace_seconds": train.grace_seconds,
        "attempt": train.attempt,
        "queued_at": moment(train.queued_at),
        "started_at": moment(train.started_at),
        "finished_at": moment(train.finished_at),
        "exit_code": train.exit_code,
        "traceback": train.traceback,
        "resumed_from": train.resume,
        "expected_start": None,
        "ahead": None,
        "progress": dict(progress),
    }
    return {**body, **_waiting(train, wait)}


def inference_json(inference: Inference, url: str | None, wait: Wait | None) -> Json:
    body = {
        **_common(inference),
        **_limits(inference),
        "train_id": inference.train_id,
        "checkpoint": inference.checkpoint,
        "code_path": inference.code_path,
        "model_path": inference.model_path,
        "command": list(inference.command),
        "port": inference.port,
        "replicas": inference.replicas,
        "idle_timeout_seconds": inference.idle_timeout_seconds,
        "timeout_seconds": inference.timeout_seconds,
        "sample": inference.sample,
        "attempt": inference.attempt,
        "revision": inference.revision,
        "revisions": list(inference.revisions),
        "started_at": moment(inference.started_at),
        "last_request_at": moment(inference.last_request_at),
        "url": url,
    }
    return {**body, **_waiting(inference, wait)}


def _common(record: Runnable | Workspace) -> Json:
    return {
        "id": record.id,
        "name": record.name,
        "description": record.description,
        "owner": record.owner,
        "state": record.state,
        "reason": record.reason,
        "message": record.message,
        "created_at": moment(record.created_at),
        "updated_at": moment(record.updated_at),
    }


def _limits(record: Runnable) -> Json:
    return {
        "image_id": record.image_id,
        "gpus": record.gpus,
        "cpus": record.cpus,
        "memory_bytes": record.memory_bytes,
    }


def _waiting(record: Runnable, wait: Wait | None) -> Json:
    if wait is None or record.status is not Status.QUEUED:
        return {}
    words = wait.message if wait.reason != "restart_delay" else record.message or wait.message
    return {
        "reason": wait.reason if wait.reason != "restart_delay" else record.reason,
        "message": words,
        "expected_start": moment(wait.expected_start),
        "ahead": wait.ahead,
    }
