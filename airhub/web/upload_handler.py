"""The handler of uploads: who asks is settled before the first byte of the body is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.web import stream_request_body

from airhub.errors import AirHubError
from airhub.web.handler import RouteHandler
from airhub.web.uploads import Receiver


@stream_request_body
class UploadHandler(RouteHandler):
    """Streams the body to a file; an error is told once the client has sent what it wants to send."""

    async def prepare(self) -> None:
        self._receiver: Receiver | None = None
        self._failure: AirHubError | None = None
        if self.request.method != "POST":
            return
        storage = self.services.parts.storage
        self.request.connection.set_max_body_size(storage.upload_limit_bytes + (1 << 20))  # type: ignore[union-attr]
        try:
            actor = await self.actor()
            actor.require(self.routes["POST"].power or "")
            self._receiver = Receiver(
                self.request.headers.get("Content-Type", ""), storage.incoming_folder(), storage.upload_limit_bytes
            )
        except AirHubError as exc:
            self._failure = exc

    def data_received(self, chunk: bytes) -> None:
        if self._receiver is None or self._failure is not None:
            return
        try:
            self._receiver.feed(chunk)
        except AirHubError as exc:
            self._failure = exc

    def received(self) -> tuple[str, Path]:
        """Return what has come in."""
        if self._failure is not None:
            raise self._failure
        return self._receiver.finish()

    async def post(self, *ids: str) -> None:
        if self._failure is not None:
            raise self._failure
        await super().post(*ids)

    def on_finish(self) -> None:
        self._discard()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._discard()

    def _discard(self) -> None:
        receiver: Any = getattr(self, "_receiver", None)
        if receiver is not None:
            receiver.discard()
