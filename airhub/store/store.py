"""The database as the rest of AirHub sees it: records in, records out, changes guarded; the only SQL there is."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from airhub.domain import models
from airhub.domain.lifecycle import FINAL, Status, Target, public_state
from airhub.errors import Conflict, InvalidRequest
from airhub.store import tables

R = TypeVar("R", bound=models.Record)

TABLES: Mapping[type[models.Record], sa.Table] = {
    models.Image: tables.images,
    models.Template: tables.templates,
    models.Train: tables.trains,
    models.Inference: tables.inferences,
    models.Workspace: tables.workspaces,
}
EVENTS_KEPT = 10_000
EVENTS_KEPT_FOR = timedelta(hours=24)
KEYS_KEPT_FOR = timedelta(hours=24)
_TUPLES = frozenset({"kinds", "command", "gpu_ids", "revisions"})


class StaleRecord(Exception):
    """The record was changed by somebody else since it was read: read it again and decide anew."""


@dataclass(frozen=True)
class RequestKey:
    """An ``Idempotency-Key`` with what it was used for."""

    owner: str
    route: str
    key: str
    body_hash: str


class Store:
    """Short synchronous transactions over one database. Not for several threads at once."""

    def __init__(self, url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self.url = url
        self._clock = clock
        self._listeners: list[Callable[[Sequence[models.EventRow]], None]] = []
        arguments: dict[str, Any] = {}
        if url.startswith("sqlite"):
            arguments["connect_args"] = {"timeout": 30, "check_same_thread": False}
        self._engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"), **arguments)
        if url.startswith("sqlite"):
            sa_event.listen(self._engine, "connect", _prepare_sqlite)
        self._connection: Connection | None = None
        self._pending: list[models.EventRow] = []

    def close(self) -> None:
        self._engine.dispose()

    def on_events(self, listener: Callable[[Sequence[models.EventRow]], None]) -> None:
        """Call ``listener`` after each commit that wrote events, with these, in order."""
        self._listeners.append(listener)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Make everything inside one transaction; nested ones join the outer."""
        if self._connection is not None:
            yield self._connection
            return
        with self._engine.begin() as connection:
            self._connection = connection
            try:
                yield connection
            except BaseException:
                self._pending.clear()
                raise
            finally:
                self._connection = None
        committed, self._pending = self._pending, []
        if committed:
            for listener in self._listeners:
                listener(committed)

    # Records

    def insert(self, record_type: type[R], request: RequestKey | None = None, **values: Any) -> R:
        """Write a new record, its ``created`` event and the request's key. Raises ``Conflict`` on a taken name."""
        table = TABLES[record_type]
        now = self._clock()
        values = {"created_at": now, "updated_at": now, "row_version": 1, **_to_columns(values)}
        with self.transaction() as connection:
            try:
                result = connection.execute(table.insert().values(**values))
            except IntegrityError as exc:
                raise Conflict("One with this name exists already. Choose another name.") from exc
            new_id = result.inserted_primary_key[0]
            if request is not None:
                self._remember(connection, request, new_id, now)
            row = connection.execute(table.select().where(table.c.id == new_id)).one()
            record = _from_row(record_type, row)
            if "state" in table.c:
                self._add_event(connection, *_state_event(record), now)
        return record

    def get(self, record_type: type[R], record_id: int, deleted: bool = False) -> R | None:
        """Return a record, or null; one that is being deleted counts as gone unless ``deleted``."""
        table = TABLES[record_type]
        query = table.select().where(table.c.id == record_id)
        if "target" in table.c and not deleted:
            query = query.where(table.c.target != Target.DELETED)
        with self.transaction() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _from_row(record_type, row)

    def find(self, record_type: type[R], *conditions: Any, limit: int | None = None, **equal: Any) -> list[R]:
        """Return the records whose columns equal the values given (a list, tuple or set: one of them), oldest first."""
        table = TABLES[record_type]
        query = table.select().order_by(table.c.id)
        for condition in (*conditions, *_equals(table, equal)):
            query = query.where(condition)
        if limit is not None:
            query = query.limit(limit)
        with self.transaction() as connection:
            return [_from_row(record_type, row) for row in connection.execute(query)]

    def page(
        self, record_type: type[R], limit: int, after: str | None = None, **equal: Any
    ) -> tuple[list[R], str | None]:
        """Return one page of records, newest first, and the cursor of the next; nulls in ``equal`` do not count."""
        table = TABLES[record_type]
        query = table.select().order_by(table.c.id.desc()).limit(limit + 1)
        if "target" in table.c:
            query = query.where(table.c.target != Target.DELETED)
        for condition in _equals(table, {key: value for key, value in equal.items() if value is not None}):
            query = query.where(condition)
        if after is not None:
            query = query.where(table.c.id < read_cursor(after))
        with self.transaction() as connection:
            records = [_from_row(record_type, row) for row in connection.execute(query)]
        return records[:limit], make_cursor(records[limit - 1].id) if len(records) > limit else None

    def apply(self, record: R, changes: Mapping[str, Any]) -> R:
        """Write changes to a record as it was read, and the event when its state changed.

        Raises ``StaleRecord`` when somebody else has changed or removed it since.
        """
        if not changes:
            return record
        table = TABLES[type(record)]
        now = self._clock()
        values = {**_to_columns(changes), "row_version": record.row_version + 1, "updated_at": now}
        if "state" in table.c and isinstance(record, models.Runnable):
            status = Status(values.get("status", record.status))
            values["state"] = str(public_state(status, Target(values.get("target", record.target))))
        with self.transaction() as connection:
            done = connection.execute(
                table.update()
                .where(table.c.id == record.id, table.c.row_version == record.row_version)
                .values(**values)
            )
            if done.rowcount != 1:
                raise StaleRecord(f"{table.name} {record.id}")
            row = connection.execute(table.select().where(table.c.id == record.id)).one()
            changed = _from_row(type(record), row)
            if "state" in table.c and _visible(changed) != _visible(record):
                self._add_event(connection, *_state_event(changed), now)
        return changed

    def update(self, record: R, change: Callable[[R], Mapping[str, Any]]) -> R | None:
        """Apply what ``change`` makes of the record as it is now, as often as it takes; null when it is gone."""
        current: R | None = record
        while current is not None:
            try:
                return self.apply(current, change(current))
            except StaleRecord:
                current = self.get(type(record), record.id, deleted=True)
        return None

    def save_progress(self, train_id: int, progress: Mapping[str, Any]) -> None:
        """Keep how far a train is; no event, and no new row version, since nothing is decided by it."""
        table = tables.trains
        with self.transaction() as connection:
            connection.execute(table.update().where(table.c.id == train_id).values(progress=dict(progress)))

    def delete(self, record: models.Record) -> None:
        """Remove a record for good; its events tell of it."""
        table = TABLES[type(record)]
        with self.transaction() as connection:
            connection.execute(table.delete().where(table.c.id == record.id))
            if isinstance(record, models.Template):
                for side in (tables.template_versions, tables.drafts):
                    connection.execute(side.delete().where(side.c.template_id == record.id))
            elif isinstance(record, models.Inference):
                keys = tables.endpoint_keys
                connection.execute(keys.delete().where(keys.c.inference_id == record.id))
            if isinstance(record, models.Runnable):
                runs = tables.attempts
                connection.execute(runs.delete().where(runs.c.kind == record.kind, runs.c.job_id == record.id))
            if isinstance(record, models.Runnable | models.Workspace):
                data = {"kind": record.kind, "id": record.id, "state": "deleted", "name": record.name}
                self._add_event(connection, record.owner, "state", data, self._clock())

    def count(self, record_type: type[models.Record], **equal: Any) -> int:
        table = TABLES[record_type]
        query = sa.select(sa.func.count()).select_from(table)
        for condition in _equals(table, equal):
            query = query.where(condition)
        with self.transaction() as connection:
            return int(connection.execute(query).scalar_one())

    # Rows beside the records, as dictionaries

    def put(self, table: sa.Table, **values: Any) -> dict[str, Any]:
        """Insert a row of a side table, or replace the one with the same primary key; return it."""
        keys = {column.name: values[column.name] for column in table.primary_key if column.name in values}
        with self.transaction() as connection:
            if len(keys) == len(table.primary_key):
                connection.execute(table.delete().where(*_equals(table, keys)))
            result = connection.execute(table.insert().values(**values))
            identity = dict(zip(table.primary_key.columns.keys(), result.inserted_primary_key, strict=True))
            return dict(connection.execute(table.select().where(*_equals(table, identity))).mappings().one())

    def rows(self, table: sa.Table, order: str | None = None, **equal: Any) -> list[dict[str, Any]]:
        """Return rows of a side table; ``order`` is a column name, led by ``-`` for descending."""
        query = table.select().where(*_equals(table, equal))
        if order:
            column = table.c[order.lstrip("-")]
            query = query.order_by(column.desc() if order.startswith("-") else column)
        with self.transaction() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def drop(self, table: sa.Table, **equal: Any) -> int:
        """Delete rows of a side table; return how many."""
        with self.transaction() as connection:
            return connection.execute(table.delete().where(*_equals(table, equal))).rowcount

    def template_version(self, template_id: int, version: int) -> models.TemplateVersion | None:
        found = self.rows(tables.template_versions, template_id=template_id, version=version)
        return None if not found else models.TemplateVersion(**{**found[0], "command": tuple(found[0]["command"])})

    def trees_in_use(self) -> set[str]:
        """Return the hashes of the code snapshots that something still needs."""
        with self.transaction() as connection:
            return {
                tree
                for table in (tables.template_versions, tables.trains, tables.inferences)
                for (tree,) in connection.execute(sa.select(table.c.tree).distinct())
            }

    # Idempotency

    def remembered(self, request: RequestKey) -> int | None:
        """Return the id of the object that this key made, null when it is new.

        Raises ``Conflict`` when the key was used with another body.
        """
        keys = tables.idempotency_keys
        with self.transaction() as connection:
            row = connection.execute(
                keys.select().where(
                    keys.c.owner == request.owner,
                    keys.c.route == request.route,
                    keys.c.key == request.key,
                    keys.c.created_at > self._clock() - KEYS_KEPT_FOR,
                )
            ).one_or_none()
        if row is None:
            return None
        if row.body_hash != request.body_hash:
            raise Conflict(
                "This Idempotency-Key was used with another body within the last 24 hours. Send a new key for a new request."
            )
        return row.object_id

    def _remember(self, connection: Connection, request: RequestKey, object_id: int, now: datetime) -> None:
        keys = tables.idempotency_keys
        connection.execute(
            keys.delete().where(
                keys.c.owner == request.owner, keys.c.route == request.route, keys.c.key == request.key
            )
        )
        connection.execute(
            keys.insert().values(**dataclasses.asdict(request), object_id=object_id, created_at=now)
        )

    # Events

    def add_events(self, events: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
        """Write events given as (owner, event, data), in one transaction."""
        now = self._clock()
        with self.transaction() as connection:
            for owner, name, data in events:
                self._add_event(connection, owner, name, data, now)

    def _add_event(self, connection: Connection, owner: str, name: str, data: Mapping[str, Any], now: datetime) -> None:
        values = {"owner": owner, "event": name, "data": dict(data), "created_at": now}
        result = connection.execute(tables.events.insert().values(**values))
        self._pending.append(models.EventRow(sequence=result.inserted_primary_key[0], **values))

    def events_after(self, sequence: int, owner: str | None = None, limit: int = 1000) -> list[models.EventRow]:
        """Return events with higher sequence numbers, oldest first; ``owner`` null means everybody's."""
        table = tables.events
        query = table.select().where(table.c.sequence > sequence).order_by(table.c.sequence).limit(limit)
        if owner is not None:
            query = query.where(table.c.owner == owner)
        with self.transaction() as connection:
            return [models.EventRow(**row) for row in connection.execute(query).mappings()]

    def event_bounds(self) -> tuple[int, int]:
        """Return the sequence numbers of the oldest event kept and of the newest; (1, 0) when there is none yet."""
        table = tables.events
        with self.transaction() as connection:
            low, high = connection.execute(
                sa.select(sa.func.min(table.c.sequence), sa.func.max(table.c.sequence))
            ).one()
        return (1, 0) if low is None else (low, high)

    def prune(self) -> None:
        """Forget events and idempotency keys that are past their time."""
        now = self._clock()
        table, keys = tables.events, tables.idempotency_keys
        with self.transaction() as connection:
            newest = connection.execute(sa.select(sa.func.max(table.c.sequence))).scalar()
            if newest is not None:
                connection.execute(
                    table.delete().where(
                        table.c.sequence < newest,
                        sa.or_(
                            table.c.sequence <= newest - EVENTS_KEPT, table.c.created_at < now - EVENTS_KEPT_FOR
                        ),
                    )
                )
            connection.execute(keys.delete().where(keys.c.created_at < now - KEYS_KEPT_FOR))


def make_cursor(position: int) -> str:
    """Return the opaque text under which a list goes on below ``position``."""
    return base64.urlsafe_b64encode(f"id:{position}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    """Return the position of a cursor; ``InvalidRequest`` when it is none."""
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        kind, _, number = text.partition(":")
        if kind != "id" or not number.isdigit() or len(number) > 18:
            raise ValueError(text)
        return int(number)
    except (ValueError, UnicodeError, binascii.Error) as exc:
        raise InvalidRequest.of("after", "is not a cursor that this list gave out; start without it") from exc


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _equals(table: sa.Table, equal: Mapping[str, Any]) -> list[Any]:
    return [
        table.c[name].in_([_plain(item) for item in value])
        if isinstance(value, list | tuple | set | frozenset)
        else table.c[name] == _plain(value)
        for name, value in equal.items()
    ]


def _to_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Status | Target):
        return str(value)
    if isinstance(value, tuple | frozenset | set):
        return list(value)
    return value


def _from_row(record_type: type[R], row: Any) -> R:
    values = dict(row._mapping)
    for name in _TUPLES & values.keys():
        values[name] = tuple(values[name])
    if "status" in values:
        values["status"] = Status(values["status"])
        values["target"] = Target(values["target"])
    return record_type(**values)


def _visible(record: Any) -> tuple[Any, ...]:
    return record.state, record.reason, record.message, record.attempt


def _state_event(record: Any) -> tuple[str, str, dict[str, Any]]:
    data = {
        "kind": record.kind,
        "id": record.id,
        "state": record.state,
        "name": record.name,
        "reason": record.reason,
        "message": record.message,
        "attempt": record.attempt,
    }
    return record.owner, "state", data


def is_final(record: models.Runnable) -> bool:
    """Whether a job has ended and nobody wants it to start again."""
    return record.status in FINAL and record.target is not Target.RUNNING
