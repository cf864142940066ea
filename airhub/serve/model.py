"""The application in front of ``infer.py``: ``/predict`` and the Open Inference Protocol."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from . import codec, frames
from .bodies import BINARY_TYPES, NPY
from .connection import JSON_TYPE, Request, Sink
from .faults import Fault, invalid, unavailable, unreadable
from .pool import Call, Pool
from .process import ModelProcess
from .routes import Base, not_allowed
from .settings import Settings

log = logging.getLogger("airhub.serve")

SERVER = {"name": "airhub", "version": "1.0", "extensions": ["binary_tensor_data"]}
MODEL_VERSION = "1"
_PLATFORM = "python"
_MODELS = "/v2/models/"


class ModelApp(Base):
    """Answers requests by the model's process."""

    def __init__(self, settings: Settings, end: Callable[[int], None]):
        super().__init__(settings, end)
        self._pool = Pool(
            lambda pool: ModelProcess(pool, self._load_failed),
            settings.timeout_seconds,
            settings.queue,
            settings.max_response_bytes,
            self._changed,
        )
        self._was_ready = False

    @property
    def ready(self) -> bool:
        return self._pool.ready

    @property
    def in_flight(self) -> int:
        return self._pool.in_flight

    @property
    def queued(self) -> int:
        return self._pool.queued

    @property
    def restarts(self) -> int:
        return self._pool.restarts

    def start(self) -> None:
        self._pool.start()

    async def stop(self) -> None:
        await self._pool.stop()

    def begin(self, request: Request) -> Sink | None:
        self.admit(request)
        return None

    def handle(self, request: Request) -> None:
        """Answer one whole request."""
        try:
            if request.path == "/predict":
                if request.method == "POST":
                    self._predict(request)
                else:
                    self._other(request, ("POST",))
            else:
                self._route(request)
        except Fault as fault:
            request.fail(fault)

    def finished(self, request: Request) -> None:
        if request.call is not None and not request.call.over:
            self._pool.cancel(request.call)
        super().finished(request)

    def _predict(self, request: Request) -> None:
        if request.query:
            name = unquote(request.query.partition("=")[0].partition("&")[0])
            raise invalid(name, "is no query parameter of predict")
        kind = request.header(b"content-type").partition(";")[0].strip().lower()
        accept = request.header(b"accept").lower()
        self._refuse_compressed(request)
        if kind.startswith(BINARY_TYPES) or NPY in accept:
            meta = json.dumps({"type": kind, "accept": accept}).encode()
            self._submit(request, frames.PREDICT_BINARY, meta)
        else:
            self._submit(request, frames.PREDICT, b"")

    def _submit(self, request: Request, kind: int, meta: bytes) -> None:
        def done(status: int, headers: bytes, body: bytes) -> None:
            request.reply(status, body, headers or JSON_TYPE)

        call = Call(kind, meta, request.body, done, request.fail)
        self._pool.submit(call)
        request.call = call
        request.body = b""

    def _route(self, request: Request) -> None:
        path = request.path
        if not request.counted:
            self.answer_own(request)
        elif path in ("/v2", "/v2/"):
            self._get(request, SERVER)
        elif path.startswith(_MODELS):
            self._model(request)
        else:
            raise _not_found(f"There is nothing at {path}; /predict and /v2 (Open Inference Protocol) are here.")

    def _model(self, request: Request) -> None:
        """Answer below ``/v2/models/NAME``; a name with a slash may come with or without its escape."""
        rest = unquote(request.path[len(_MODELS) :])
        name = self.settings.name
        if rest != name and not rest.startswith(name + "/"):
            raise _not_found(f"There is no model {rest.partition('/')[0]!r} here; this endpoint's model is {name!r}.")
        verb = rest[len(name) :].strip("/")
        if verb == "versions" or verb.startswith("versions/"):
            version, _, verb = verb[len("versions/") :].partition("/")
            if version != MODEL_VERSION:
                raise _not_found(f"The model has no version {version!r}; it has {MODEL_VERSION!r}.")
        if verb == "":
            self._get(
                request,
                {"name": name, "versions": [MODEL_VERSION], "platform": _PLATFORM, "inputs": [], "outputs": []},
            )
        elif verb == "ready":
            if not self.ready and request.method in ("GET", "HEAD"):
                raise unavailable("The model is being loaded.")
            self._get(request, {"name": name, "ready": True})
        elif verb == "infer":
            if request.method != "POST":
                self._other(request, ("POST",))
                return
            self._infer(request)
        else:
            raise _not_found(f"There is nothing at {request.path}. A model has 'ready' and 'infer'.")

    def _infer(self, request: Request) -> None:
        self._refuse_compressed(request)
        header: int | None = None
        length = request.header(b"inference-header-content-length")
        if length:
            if not (length.isascii() and length.isdigit()) or len(length) > 18:
                raise invalid("Inference-Header-Content-Length", f"is {length!r}, which is no number")
            header = int(length)
        meta = {"header_length": header, "name": self.settings.name, "version": MODEL_VERSION}
        self._submit(request, frames.INFER, json.dumps(meta).encode())

    def _refuse_compressed(self, request: Request) -> None:
        encoding = request.header(b"content-encoding")
        if encoding and encoding.lower() != "identity":
            raise unreadable(f"Content-Encoding {encoding!r} is not understood here: send the body uncompressed.")

    def _get(self, request: Request, answer: Mapping[str, object]) -> None:
        if request.method in ("GET", "HEAD"):
            request.reply(200, codec.dumps(answer))
        else:
            self._other(request, ("GET", "HEAD"))

    def _other(self, request: Request, methods: tuple[str, ...]) -> None:
        """Answer OPTIONS with what is possible, any other method with 405."""
        if request.method != "OPTIONS":
            raise not_allowed(request, methods)
        request.reply(200, b"", f"Allow: {', '.join((*methods, 'OPTIONS'))}\r\n".encode())

    def _changed(self) -> None:
        if self._pool.ready and not self._was_ready:
            log.info("The model is loaded; %d at once, %d may wait", self._pool.slots, self.settings.queue)
        self._was_ready = self._pool.ready

    def _load_failed(self, status: int) -> None:
        self._end(status)


def _not_found(message: str) -> Fault:
    return Fault(404, "not_found", message)
