"""Requests a second of the inference server inside its container, next to FastAPI, MLServer and bare ASGI in one run.

Run it alone: ``python bench/endpoints.py``. It needs ``wrk``; the peers are installed into a virtual environment of
their own under the user's cache folder. What counts is the ratio against the peers of the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("fastapi", "mlserver")
PACKAGES = ("fastapi", "mlserver", "uvicorn", "httptools", "uvloop", "orjson")
CONNECTIONS = (1, 16, 64)
NEEDED = 1.5
ROW = [1.0, 2.0, 3.0, 4.0]
PREDICT = json.dumps({"inputs": [ROW]})
INFER = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}]})

INFER_PY = """
def load(model_path):
    return None


def predict(model, inputs):
    return inputs
"""

FASTAPI_PY = """
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    inputs: Any


class Answer(BaseModel):
    outputs: Any


app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Answer:
    return Answer(outputs=request.inputs)
"""

ASGI_PY = """
import orjson


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = orjson.dumps({"outputs": orjson.loads(body)["inputs"]})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
"""

MLSERVER_PY = """
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Echo(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        output = ResponseOutput(name="output", shape=tensor.shape, datatype=tensor.datatype, data=tensor.data)
        return InferenceResponse(model_name=self.name, outputs=[output])
"""


@dataclass(frozen=True)
class Server:
    """One way to serve the model: how it is started, and the request that it is measured with."""

    name: str
    command: list[str]
    environment: dict[str, str]
    port: int
    path: str
    body: str
    headers: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (3)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, the median counts (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed; Debian has it as the package wrk")
    with tempfile.TemporaryDirectory(prefix="airhub-bench-") as folder:
        servers = prepare(Path(folder), install_peers())
        rates = measure_all(servers, Path(folder), arguments.seconds, arguments.rounds)
    return report(rates, arguments.json)


def install_peers() -> Path:
    """Return the Python of the peers' virtual environment, made on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airhub-bench" / "endpoints"
    python = cache / "bin" / "python"
    if not (cache / "complete").exists():
        venv.create(cache, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
        (cache / "complete").touch()
    return python


def prepare(folder: Path, peers: Path) -> list[Server]:
    """Write each server's code and return how to start them."""
    key = "benchmark"
    digest = hashlib.sha256(key.encode()).hexdigest()
    http_port, grpc_port, metrics_port = free_port(), free_port(), free_port()
    texts = {
        "airhub/infer.py": INFER_PY,
        "keys.json": json.dumps({"keys": [{"id": 1, "sha256": digest}]}),
        "peers/fast.py": FASTAPI_PY,
        "peers/bare.py": ASGI_PY,
        "mlserver/echo.py": MLSERVER_PY,
        "mlserver/model-settings.json": json.dumps({"name": "echo", "implementation": "echo.Echo"}),
        "mlserver/settings.json": json.dumps(
            {
                "host": "127.0.0.1",
                "http_port": http_port,
                "grpc_port": grpc_port,
                "metrics_port": metrics_port,
                "parallel_workers": 0,
                "debug": False,
            }
        ),
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    port = free_port()
    airhub = {
        "AIRHUB_CODE": str(folder / "airhub"),
        "AIRHUB_INFERENCE_ID": "1",
        "AIRHUB_INFERENCE_NAME": "echo",
        "AIRHUB_SERVE_HOST": "127.0.0.1",
        "AIRHUB_SERVE_PORT": str(port),
        "AIRHUB_SERVE_KEYS_FILE": str(folder / "keys.json"),
    }
    serve = [sys.executable, str(ROOT / "airhub" / "serve")]
    bearer = (f"Authorization: Bearer {key}",)
    v2 = "/v2/models/echo/infer"
    mlserver = [str(peers.with_name("mlserver")), "start", str(folder / "mlserver")]
    return [
        Server("airhub", serve, airhub, port, "/airhub-endpoints/1/predict", PREDICT, bearer),
        Server("airhub v2", serve, airhub, port, f"/airhub-endpoints/1{v2}", INFER, bearer),
        _uvicorn("fastapi", "fast:app", peers, folder),
        Server("mlserver", mlserver, {}, http_port, v2, INFER),
        _uvicorn("bare asgi", "bare:app", peers, folder),
    ]


def _uvicorn(name: str, app: str, python: Path, folder: Path) -> Server:
    port = free_port()
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
    command = [str(python), "-m", "uvicorn", app, "--app-dir", str(folder / "peers"), "--port", str(port), *options]
    return Server(name, command, {}, port, "/predict", PREDICT)


def measure_all(servers: list[Server], folder: Path, seconds: float, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Measure every server once a round, so that what else the machine does falls on all of them alike."""
    rates: dict[str, dict[int, list[float]]] = {server.name: {count: [] for count in CONNECTIONS} for server in servers}
    for number in range(rounds):
        for server in servers:
            with running(server, folder):
                wrk(server, folder, 16, 1.0)
                for count in CONNECTIONS:
                    rate = wrk(server, folder, count, seconds)
                    rates[server.name][count].append(rate)
                    print(f"round {number + 1} {server.name:10} {count:3} {rate:9.0f}/s", file=sys.stderr)
    return rates


@contextmanager
def running(server: Server, folder: Path) -> Iterator[None]:
    """Start a server, wait for its first right answer, and end it afterwards."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.command,
            env={**os.environ, **server.environment},
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(server):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{server.name} does not answer:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(server: Server) -> bool:
    headers = {"Content-Type": "application/json"}
    headers.update(line.split(": ", 1) for line in server.headers)
    url = f"http://127.0.0.1:{server.port}{server.path}"
    request = urllib.request.Request(url, server.body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return b"3.0" in answer.read()
    except (urllib.error.URLError, OSError):
        return False


def wrk(server: Server, folder: Path, connections: int, seconds: float) -> float:
    """Return the requests a second that one wrk thread gets answered; an answer other than 200 ends the benchmark."""
    script = folder / "request.lua"
    lines = ["Content-Type: application/json", *server.headers]
    sets = "\n".join('wrk.headers["{}"] = "{}"'.format(*line.split(": ", 1)) for line in lines)
    script.write_text(f"wrk.method = 'POST'\nwrk.body = '{server.body}'\n{sets}\n")
    url = f"http://127.0.0.1:{server.port}{server.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if found is None or "Non-2xx" in output:
        raise SystemExit(f"{server.name} failed under wrk:\n{output}")
    return float(found[1])


def report(rates: dict[str, dict[int, list[float]]], as_json: bool) -> int:
    """Print medians and ratios; return 1 where AirHub is not ``NEEDED`` times the best peer product."""
    medians = {name: {count: statistics.median(row[count]) for count in CONNECTIONS} for name, row in rates.items()}
    best = {count: max(medians[peer][count] for peer in PEERS) for count in CONNECTIONS}
    ratios = {name: {count: row[count] / best[count] for count in CONNECTIONS} for name, row in medians.items()}
    passed = all(ratios["airhub"][count] >= NEEDED for count in CONNECTIONS)
    if as_json:
        result = {"requests_per_second": medians, "ratio_to_best_peer": ratios, "needed": NEEDED, "ok": passed}
        print(json.dumps(result))
    else:
        print(f"{'requests/s (ratio to the best peer)':36}" + "".join(f"{count:>18}" for count in CONNECTIONS))
        for name, row in medians.items():
            cells = "".join(f"{row[count]:>10.0f} ({ratios[name][count]:.2f})" for count in CONNECTIONS)
            print(f"{name:36}{cells}")
        print(f"needed: {NEEDED} times the best of {', '.join(PEERS)}: {'met' if passed else 'NOT met'}")
    return 0 if passed else 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
