"""The server as a container runs it: its folder mounted read-only, no privileges, a memory limit, as process 1."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import require

from .conftest import FOLDER, until

pytestmark = pytest.mark.docker

CODE = """
def load(model_path):
    return None

def predict(model, inputs):
    if inputs == "eat":
        eaten = []
        while True:
            eaten.append(b"x" * 2**20)
    return inputs
"""


def docker(*words: str, data: bytes | None = None) -> str:
    run = subprocess.run(["docker", *words], input=data, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().strip()


@pytest.fixture
def image() -> Iterator[str]:
    """Make an image that is nothing but links and mount points: programs and libraries are the host's, read-only."""
    require("docker", "root")
    if shutil.which("docker") is None:
        pytest.skip("no docker client on PATH")
    name = f"airhub-test-serve-{uuid.uuid4().hex[:12]}"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("usr", "proc", "sys", "dev", "tmp", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        for link in ("bin", "lib", "lib64"):
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{link}"
            tar.addfile(entry)
    docker("import", "-", name, data=buffer.getvalue())
    yield name
    docker("rmi", "-f", name)


@pytest.fixture
def container(image: str, tmp_path: Path) -> Iterator[str]:
    python = shutil.which("python3", path="/usr/bin")
    if python is None or not Path("/lib64").is_symlink():
        pytest.skip("the host has no /usr/bin/python3 that could be mounted whole")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "infer.py").write_text(CODE)
    serve = tmp_path / "serve"
    shutil.copytree(FOLDER, serve, ignore=shutil.ignore_patterns("__pycache__"))
    name = image
    docker(
        *("run", "--detach", "--name", name, "--label", "airhub.test=serve", "--user", "1234:1234"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "200m", "--memory-swap", "200m"),
        *("--volume", "/usr:/usr:ro", "--volume", f"{serve}:/airhub/serve:ro"),
        *("--volume", f"{tmp_path / 'code'}:/data/code:ro", image, python, "/airhub/serve"),
    )
    yield name
    docker("rm", "-f", name)


def call(address: str, method: str, path: str, inputs: object = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(address, 8080, timeout=30)
    try:
        connection.request(method, path, json.dumps({"inputs": inputs}) if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def is_ready(address: str) -> bool:
    try:
        return call(address, "GET", "/v2/health/ready")[0] == 200
    except OSError:
        return False


def test_out_of_memory_takes_the_model_not_the_server(container: str) -> None:
    address = docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", container)
    until(lambda: is_ready(address))
    status, error = call(address, "POST", "/predict", "eat")
    assert (status, error["code"]) == (500, "model_error")
    assert "ran out of memory" in str(error["message"])
    assert call(address, "POST", "/predict", 5) == (200, {"outputs": 5})
    assert docker("inspect", "--format", "{{.State.Running}}", container) == "true"
    docker("stop", "--time", "10", container)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
