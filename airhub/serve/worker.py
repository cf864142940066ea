"""The process that holds the model: loads ``infer.py`` and answers the server's calls with its ``predict``."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import inspect
import io
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from . import codec, frames
from .bodies import Answer, read_call
from .faults import Fault, model_error, too_large
from .process import LOAD_FAILED
from .settings import Settings, from_environment

_SPIN_SECONDS = 0.0002
_QUICK_SECONDS = 0.001
_RECEIVE_BYTES = 256 * 1024
_PR_SET_PDEATHSIG = 1

CONTRACT = "load(model_path) and predict(model, inputs)"


class BadCode(Exception):
    """``infer.py`` is not there or lacks what the server needs of it; the message says what."""


@dataclass(frozen=True)
class Model:
    """A loaded model and how it wants to be called."""

    value: Any
    predict: Callable[[Any, Any], Any]
    batch_size: int
    batch_wait_seconds: float
    concurrency: int


def main(calls_descriptor: int, answers_descriptor: int) -> int:
    """Load the model, then answer calls until the server ends; return the exit status."""
    _prepare(calls_descriptor, answers_descriptor)
    settings = from_environment()
    try:
        model = load(settings)
    except BadCode as exc:
        print(f"airhub: {exc}", file=sys.stderr, flush=True)
        return LOAD_FAILED
    except BaseException as exc:
        _print_traceback(exc)
        print(f"airhub: the model was not loaded: {_last_line(exc)}", file=sys.stderr, flush=True)
        return LOAD_FAILED
    with socket.socket(fileno=calls_descriptor) as calls, socket.socket(fileno=answers_descriptor) as answers:
        hello = {"slots": model.concurrency * model.batch_size}
        answers.sendall(frames.pack(frames.READY, 0, 0, b"", json.dumps(hello).encode()))
        with contextlib.suppress(ConnectionError):
            if model.concurrency == 1:
                Lane(settings, model, Inbox(calls).take, answers).run()
            else:
                _run_lanes(settings, model, calls, answers)
    return 0


def load(settings: Settings) -> Model:
    """Import ``infer.py`` and call its ``load``; whatever these raise goes to the caller."""
    path = Path(settings.code) / "infer.py"
    if not path.is_file():
        raise BadCode(f"there is no infer.py in {settings.code}; it must define {CONTRACT}")
    os.chdir(settings.code)
    sys.path.insert(0, settings.code)
    spec = importlib.util.spec_from_file_location("infer", str(path))
    if spec is None or spec.loader is None:
        raise BadCode(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["infer"] = module
    spec.loader.exec_module(module)
    for name in ("load", "predict"):
        if not callable(getattr(module, name, None)):
            raise BadCode(f"infer.py does not define {name}; it must define {CONTRACT}")
    return Model(
        value=module.load(settings.model),
        predict=module.predict,
        batch_size=_attribute(module, "batch_size", 1, int),
        batch_wait_seconds=_attribute(module, "batch_wait_seconds", 0.005, float),
        concurrency=settings.concurrency or _attribute(module, "concurrency", 1, int),
    )


class Inbox:
    """Takes calls straight from the server's socket."""

    def __init__(self, calls: socket.socket):
        self._calls = calls
        self._reader = frames.Reader()
        self._taken = 0.0
        self._spins = (os.cpu_count() or 1) > 1

    def take(self, wait_seconds: float | None) -> frames.Frame | None:
        """Return the next call; None at the server's end, or when none has come in time."""
        frame = self._reader.next()
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        if frame is None and deadline is None and self._spins:
            frame = self._spin()
        while frame is None:
            self._calls.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))
            try:
                data = self._calls.recv(_RECEIVE_BYTES)
            except (TimeoutError, BlockingIOError):
                return None
            finally:
                self._calls.settimeout(None)
            if not data:
                return None
            self._reader.feed(data)
            frame = self._reader.next()
        self._taken = time.perf_counter()
        return frame

    def _spin(self) -> frames.Frame | None:
        """Look out for the next call for a moment before sleeping, if the last one was quick.

        Waking a sleeping process takes longer than a small model does; whoever else wants the processor gets it.
        """
        now = time.perf_counter()
        if now - self._taken > _QUICK_SECONDS:
            return None
        end = now + _SPIN_SECONDS
        while time.perf_counter() < end:
            try:
                data = self._calls.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
                continue
            if not data:
                return None
            self._reader.feed(data)
            return self._reader.next()
        return None


class Lane:
    """Answers calls one batch after the other."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        take: Callable[[float | None], frames.Frame | None],
        answers: socket.socket,
        lock: Any = None,
    ):
        self._settings = settings
        self._model = model
        self._take = take
        self._answers = answers
        self._lock = lock or contextlib.nullcontext()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Work until the server ends."""
        size = self._model.batch_size
        while True:
            frame = self._take(None)
            if frame is None:
                return
            if size == 1:
                self._answer(frame)
            else:
                self._answer_batch(self._fill(frame, size))

    def _fill(self, first: frames.Frame, size: int) -> list[frames.Frame]:
        batch = [first]
        deadline = time.monotonic() + self._model.batch_wait_seconds
        while len(batch) < size:
            frame = self._take(max(0.0, deadline - time.monotonic()))
            if frame is None:
                break
            batch.append(frame)
        return batch

    def _answer(self, frame: frames.Frame) -> None:
        try:
            call = read_call(frame)
            self._send(frame.number, call.write(self._predict(call.inputs)))
        except BaseException as exc:
            self._send_error(frame, exc)

    def _answer_batch(self, batch: list[frames.Frame]) -> None:
        """Predict for a whole batch; if that raises, for each alone, so that one bad input spoils no other answer."""
        calls = []
        for frame in batch:
            try:
                calls.append((frame, read_call(frame)))
            except BaseException as exc:
                self._send_error(frame, exc)
        if not calls:
            return
        try:
            outputs = self._predict_many([call.inputs for _, call in calls])
        except MemoryError as exc:
            for frame, _ in calls:
                self._send_error(frame, exc)
            return
        except BaseException as exc:
            if len(calls) == 1:
                self._send_error(calls[0][0], exc)
            else:
                for frame, _ in calls:
                    self._answer_batch([frame])
            return
        for (frame, call), output in zip(calls, outputs):  # noqa: B905 (Python 3.9 has no strict)
            try:
                self._send(frame.number, call.write(output))
            except BaseException as exc:
                self._send_error(frame, exc)

    def _predict_many(self, inputs: list[Any]) -> Any:
        outputs = self._predict(inputs)
        try:
            count = len(outputs)
        except TypeError:
            count = -1
        if count != len(inputs):
            raise model_error(
                f"infer.py asks for batches: predict gets a list of {len(inputs)} inputs and must return a list of as "
                f"many outputs; it returned {codec.type_name(outputs)}" + (f" of {count}." if count >= 0 else ".")
            )
        return outputs

    def _predict(self, inputs: Any) -> Any:
        outputs = self._model.predict(self._model.value, inputs)
        if inspect.isawaitable(outputs):
            self._loop = self._loop or asyncio.new_event_loop()
            return self._loop.run_until_complete(_awaited(outputs))
        return outputs

    def _send(self, number: int, answer: Answer) -> None:
        limit = self._settings.max_response_bytes
        if len(answer.body) > limit:
            message = f"The answer has {len(answer.body)} bytes; the limit of this endpoint is {limit}."
            raise too_large(message)
        self._write(frames.pack(number, 200, 0, answer.headers, answer.body))

    def _send_error(self, frame: frames.Frame, exc: BaseException) -> None:
        """Answer for what was raised; the caller gets its last line, the log the whole story."""
        flags = 0
        if isinstance(exc, MemoryError):
            flags = frames.WORN_OUT
            fault = model_error("predict ran out of memory (MemoryError). The model's process is started again.")
            _print_traceback(exc)
        elif isinstance(exc, Fault):
            fault = exc
            if fault.status >= 500:
                print(f"airhub: {fault.message}", file=sys.stderr, flush=True)
        elif isinstance(exc, codec.NotJson):
            fault = model_error(f"predict returned what is not JSON: {exc}. Return lists, dicts, numbers or strings.")
            print(f"airhub: {fault.message}", file=sys.stderr, flush=True)
        else:
            fault = model_error(_last_line(exc))
            _print_traceback(exc)
        self._write(frames.pack(frame.number, fault.status, flags, b"", fault.body(frame.code == frames.INFER)))

    def _write(self, data: bytes) -> None:
        with self._lock:
            self._answers.sendall(data)


def _run_lanes(settings: Settings, model: Model, calls: socket.socket, answers: socket.socket) -> None:
    """Work in as many threads as ``concurrency`` says; calls are begun in the order in which they came."""
    waiting: queue.SimpleQueue[frames.Frame | None] = queue.SimpleQueue()
    lock = threading.Lock()

    def take(wait_seconds: float | None) -> frames.Frame | None:
        try:
            return waiting.get(timeout=wait_seconds)
        except queue.Empty:
            return None

    for number in range(model.concurrency):
        lane = Lane(settings, model, take, answers, lock)
        threading.Thread(target=lane.run, name=f"predict-{number}", daemon=True).start()
    reader = frames.Reader()
    while True:
        data = calls.recv(_RECEIVE_BYTES)
        if not data:
            return
        reader.feed(data)
        while True:
            frame = reader.next()
            if frame is None:
                break
            waiting.put(frame)


async def _awaited(value: Any) -> Any:
    return await value


def _prepare(*descriptors: int) -> None:
    """Make this process the first to go when memory runs out, and let it not outlive the server."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _attribute(module: ModuleType, name: str, default: Any, kind: type) -> Any:
    value = getattr(module, name, default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or value < (1 if kind is int else 0):
        wanted = "a whole number from 1" if kind is int else "a number of seconds from 0"
        raise BadCode(f"{name} in infer.py is {value!r}; it must be {wanted}")
    return value


def _last_line(exc: BaseException) -> str:
    return traceback.format_exception_only(type(exc), exc)[-1].strip()[:2000]


def _print_traceback(exc: BaseException) -> None:
    """Write the traceback to the log from the user's first line on, without the server's own."""
    frame: TracebackType | None = exc.__traceback__
    here = str(Path(__file__).resolve().parent)
    while frame is not None and frame.tb_next is not None and _is_ours(frame, here):
        frame = frame.tb_next
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exception(type(exc), exc, frame)
        sys.stderr.flush()


def _is_ours(frame: TracebackType, here: str) -> bool:
    name = frame.tb_frame.f_code.co_filename
    return name.startswith((here, "<frozen importlib"))
