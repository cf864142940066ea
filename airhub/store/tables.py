"""The tables; ``migrations/`` makes them, ``store.py`` alone reads and writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)

Key = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; the database keeps it without a zone, Python sees it with one."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def _record() -> list[Column[Any]]:
    return [
        Column("id", Key, primary_key=True, autoincrement=True),
        Column("created_at", UtcDateTime, nullable=False),
        Column("updated_at", UtcDateTime, nullable=False),
        Column("row_version", Integer, nullable=False, default=1),
    ]


def _owned() -> list[Column[Any]]:
    return [
        Column("owner", String(255), nullable=False),
        Column("name", String(200), nullable=False),
        Column("description", Text, nullable=False, default=""),
    ]


def _limits() -> list[Column[Any]]:
    return [
        Column("gpus", Integer, nullable=False, default=0),
        Column("cpus", Float),
        Column("memory_bytes", BigInteger),
        Column("gpu_ids", JSON, nullable=False, default=list),
        Column("image_id", Key, nullable=False),
        Column("image_reference", String(500), nullable=False),
    ]


def _life() -> list[Column[Any]]:
    return [
        Column("status", String(20), nullable=False, default="created"),
        Column("target", String(20), nullable=False, default="none"),
        Column("state", String(20), nullable=False, default="created"),
        Column("reason", String(40)),
        Column("message", Text),
        Column("attempt", Integer, nullable=False, default=0),
        Column("started_at", UtcDateTime),
    ]


def _runnable() -> list[Column[Any]]:
    return [
        *_record(),
        *_owned(),
        *_limits(),
        *_life(),
        Column("stop_reason", String(40)),
        Column("restarts", Integer, nullable=False, default=0),
        Column("max_restarts", Integer, nullable=False, default=0),
        Column("queued_at", UtcDateTime),
        Column("not_before", UtcDateTime),
        Column("finished_at", UtcDateTime),
        Column("exit_code", Integer),
        Column("priority", Integer, nullable=False, default=0),
        Column("grace_seconds", Float, nullable=False, default=30.0),
        Column("tree", String(64), nullable=False),
        Column("command", JSON, nullable=False, default=list),
        Column("model_path", Text, nullable=False, default=""),
        Column("model", String(64)),
        Column("checkpoint", Text),
    ]


images = Table(
    "images",
    metadata,
    *_record(),
    Column("name", String(200), nullable=False, unique=True),
    Column("reference", String(500), nullable=False),
    Column("kinds", JSON, nullable=False),
    Column("gpu", Boolean, nullable=False, default=False),
    Column("description", Text, nullable=False, default=""),
    sqlite_autoincrement=True,
)

templates = Table(
    "templates",
    metadata,
    *_record(),
    *_owned(),
    Column("version", Integer, nullable=False, default=1),
    Column("source_train_id", Key),
    Index(None, "owner", "id"),
    sqlite_autoincrement=True,
)

template_versions = Table(
    "template_versions",
    metadata,
    Column("template_id", Key, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("image_id", Key, nullable=False),
    Column("code_path", Text, nullable=False),
    Column("tree", String(64), nullable=False),
    Column("model_path", Text, nullable=False, default=""),
    Column("model", String(64)),
    Column("data_path", Text, nullable=False, default=""),
    Column("command", JSON, nullable=False, default=list),
    Column("parameters", JSON, nullable=False, default=dict),
    Column("gpus", Integer, nullable=False, default=0),
    Column("manifest", JSON, nullable=False, default=dict),
    Column("source_train_id", Key),
    Column("source_checkpoint", Text),
)

drafts = Table(
    "drafts",
    metadata,
    Column("template_id", Key, primary_key=True, autoincrement=False),
    Column("folder", Text, nullable=False),
    Column("debug_id", Key),
    Column("created_at", UtcDateTime, nullable=False),
)

trains = Table(
    "trains",
    metadata,
    *_runnable(),
    Column("template_id", Key),
    Column("template_version", Integer),
    Column("manifest", JSON, nullable=False, default=dict),
    Column("dataset", Text, nullable=False, default=""),
    Column("checkpoint_of", Key),
    Column("dist", Boolean, nullable=False, default=False),
    Column("nodes", Integer, nullable=False, default=1),
    Column("processes", Integer, nullable=False, default=1),
    Column("parameters", JSON, nullable=False, default=dict),
    Column("deadline_seconds", Float),
    Column("mounts", JSON, nullable=False, default=dict),
    Column("resume", Text),
    Column("progress", JSON, nullable=False, default=dict),
    Column("traceback", JSON),
    Column("paused_at", UtcDateTime),
    Column("paused_seconds", Float, nullable=False, default=0.0),
    Column("log_offset", BigInteger, nullable=False, default=0),
    Index(None, "owner", "id"),
    Index(None, "status"),
    Index(None, "template_id"),
    Index(None, "checkpoint_of"),
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("kind", String(20), primary_key=True),
    Column("job_id", Key, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("exit_code", Integer),
    Column("reason", String(40)),
    Column("message", Text),
    Column("resume", Text),
    Column("gpu_ids", JSON, nullable=False, default=list),
    Column("log_offset", BigInteger, nullable=False, default=0),
)

inferences = Table(
    "inferences",
    metadata,
    *_runnable(),
    Column("train_id", Key),
    Column("code_path", Text, nullable=False, default=""),
    Column("port", Integer),
    Column("replicas", Integer, nullable=False, default=1),
    Column("idle_timeout_seconds", Float),
    Column("timeout_seconds", Float, nullable=False, default=60.0),
    Column("sample", JSON),
    Column("last_request_at", UtcDateTime),
    Column("secret", String(64), nullable=False),
    Column("revision", Integer, nullable=False, default=1),
    Column("revisions", JSON, nullable=False, default=list),
    Index(None, "owner", "id"),
    Index(None, "status"),
    sqlite_autoincrement=True,
)

endpoint_keys = Table(
    "endpoint_keys",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("inference_id", Key, nullable=False, index=True),
    Column("hash", String(64), nullable=False),
    Column("hint", String(12), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    sqlite_autoincrement=True,
)

workspaces = Table(
    "workspaces",
    metadata,
    *_record(),
    *_owned(),
    *_limits(),
    *_life(),
    Column("kind", String(20), nullable=False),
    Column("server_name", String(64), nullable=False),
    Column("dataset", Text, nullable=False, default=""),
    Column("code", Text, nullable=False, default=""),
    Column("last_activity", UtcDateTime),
    Column("extra", JSON, nullable=False, default=dict),
    Index(None, "owner", "kind", "id"),
    UniqueConstraint("owner", "server_name"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("sequence", Key, primary_key=True, autoincrement=True),
    Column("owner", String(255), nullable=False),
    Column("event", String(20), nullable=False),
    Column("data", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index(None, "owner", "sequence"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("route", String(100), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("object_id", Key),
    Column("created_at", UtcDateTime, nullable=False),
)

quotas = Table(
    "quotas",
    metadata,
    Column("subject", String(300), primary_key=True),
    Column("limits", JSON, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
