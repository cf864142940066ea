"""Starts the inference server as its own process, from a folder of code that a test writes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import airhub.serve

FOLDER = Path(airhub.serve.__file__).parent
ECHO = "def load(model_path):\n    return model_path\n\n\ndef predict(model, inputs):\n    return inputs\n"


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Serving:
    """One running server; ``call`` makes one request on a connection of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def call(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def predict(self, inputs: Any, **headers: str) -> Answer:
        return self.call("POST", "/predict", json.dumps({"inputs": inputs}), headers)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def metric(self, name: str) -> float:
        for line in self.call("GET", "/metrics").body.decode().splitlines():
            if line.startswith(f"airhub_serve_{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def worker_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


Start = Callable[..., Serving]


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until the condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a server on ``code`` (the text of infer.py) and waits until it is ready."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(
        code: str | None = ECHO,
        *,
        ready: bool = True,
        python: tuple[str, ...] = (sys.executable,),
        folder: Path = FOLDER,
        files: Any = None,
        **settings: Any,
    ) -> Serving:
        code_folder = tmp_path / f"code{len(running)}"
        code_folder.mkdir()
        if code is not None:
            (code_folder / "infer.py").write_text(code)
        for name, text in (files or {}).items():
            (code_folder / name).write_text(text)
        port = free_port()
        log = tmp_path / f"log{len(running)}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIRHUB_")}
        environment = {
            **clean,
            "AIRHUB_CODE": str(code_folder),
            "AIRHUB_SERVE_HOST": "127.0.0.1",
            "AIRHUB_SERVE_PORT": str(port),
            **{name: str(value) for name, value in settings.items()},
        }
        with log.open("wb") as output:
            process = subprocess.Popen([*python, str(folder)], env=environment, stdout=output, stderr=output)
        running.append(process)
        serving = Serving(process, port, log)
        if ready:
            until(lambda: is_ready(serving) or process.poll() is not None)
            assert process.poll() is None, serving.text()
        return serving

    yield begin
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_ready(serving: Serving) -> bool:
    try:
        return serving.call("GET", "/v2/health/ready").status == 200
    except OSError:
        return False
