"""``POST /predict``: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ECHO, FOLDER, Start

OUTPUTS = """
import numpy as np

class Odd:
    pass

def load(model_path):
    return {
        "array": np.arange(6.0).reshape(2, 3).T,
        "scalar": {"a": np.float32(0.5), "b": np.int64(3)},
        "nan": [1.0, float("nan"), float("inf")],
        "numpy_nan": np.array([1.0, np.nan]),
        "keys": {1: "x"},
        "big": 2**80,
        "tuple": (1, 2),
        "set": {"deep": [{1, 2}]},
        "bytes": b"x",
        "object": [Odd()],
    }

def predict(model, inputs):
    return model[inputs]
"""


def test_inputs_reach_predict_and_outputs_come_back(start: Start) -> None:
    server = start("def load(p):\n    return p\ndef predict(m, x):\n    return [m, x['a']]\n", AIRHUB_MODEL="/m.pth")
    answer = server.predict({"a": [1, "zwei", None]})
    assert (answer.status, answer.json()) == (200, {"outputs": ["/m.pth", [1, "zwei", None]]})
    assert answer.headers["content-type"] == "application/json"


def test_without_a_model_load_gets_none(start: Start) -> None:
    code = "def load(p):\n    return p\ndef predict(m, x):\n    return m\n"
    assert start(code).predict(1).json() == {"outputs": None}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("{}", ["inputs"]),
        ('{"inputs": 1, "extra": 2}', ["extra"]),
        ('{"input": 1}', ["inputs", "input"]),
        ("", []),
        ("[1]", []),
        ("nonsense", []),
        ('{"inputs": NaN}', []),
        ("[" * 100_000, []),
    ],
)
def test_a_body_that_is_not_the_contracts_is_422(start: Start, body: str, fields: list[str]) -> None:
    answer = start().call("POST", "/predict", body)
    assert answer.status == 422
    error = answer.json()
    assert (error["status"], error["code"]) == (422, "invalid_request")
    assert [entry["field"] for entry in error["errors"]] == fields
    assert error["message"]


def test_outputs_become_json(start: Start) -> None:
    server = start(OUTPUTS)
    expected = {
        "array": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]],
        "scalar": {"a": 0.5, "b": 3},
        "nan": [1.0, None, None],
        "numpy_nan": [1.0, None],
        "keys": {"1": "x"},
        "big": 2**80,
        "tuple": [1, 2],
    }
    for name, value in expected.items():
        answer = server.predict(name)
        assert answer.json() == {"outputs": value}, name


@pytest.mark.parametrize(("name", "kind"), [("set", "set"), ("bytes", "bytes"), ("object", "infer.Odd")])
def test_outputs_that_are_not_json_are_named_by_type(start: Start, name: str, kind: str) -> None:
    server = start(OUTPUTS)
    answer = server.predict(name)
    assert answer.status == 500
    assert answer.json()["code"] == "model_error"
    assert kind in answer.json()["message"]
    assert kind in server.text()
    assert server.predict("tuple").status == 200


def test_numpy_and_images_come_as_binary_bodies(start: Start) -> None:
    numpy = pytest.importorskip("numpy")
    images = pytest.importorskip("PIL.Image")
    code = "def load(p):\n    pass\ndef predict(m, x):\n    return x * 2 if hasattr(x, 'dtype') else x.size\n"
    server = start(code)
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([[1, 2], [3, 4]], dtype="int16"))
    answer = server.call("POST", "/predict", buffer.getvalue(), {"Content-Type": "application/x-npy"})
    assert answer.json() == {"outputs": [[2, 4], [6, 8]]}
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    answer = server.call("POST", "/predict", buffer.getvalue(), headers)
    assert answer.headers["content-type"] == "application/x-npy"
    assert numpy.load(io.BytesIO(answer.body)).tolist() == [[2, 4], [6, 8]]
    picture = io.BytesIO()
    images.new("RGB", (4, 3)).save(picture, "PNG")
    answer = server.call("POST", "/predict", picture.getvalue(), {"Content-Type": "image/png"})
    assert answer.json() == {"outputs": [4, 3]}
    for kind in ("image/png", "application/x-npy"):
        assert server.call("POST", "/predict", b"nothing of the sort", {"Content-Type": kind}).status == 422


def test_an_async_predict_is_awaited(start: Start) -> None:
    server = start("def load(p):\n    pass\nasync def predict(m, x):\n    return x + 1\n")
    assert server.predict(1).json() == {"outputs": 2}


def test_other_methods_and_paths_have_the_contracts_error(start: Start) -> None:
    server = start()
    answer = server.call("GET", "/predict")
    assert (answer.status, answer.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]
    answer = server.call("POST", "/nowhere", "{}")
    assert (answer.status, answer.json()["code"]) == (404, "not_found")
    assert server.call("OPTIONS", "/predict").status == 200
    answer = server.call("HEAD", "/health")
    assert (answer.status, answer.body) == (200, b"")
    assert server.call("POST", "/predict?token=x", '{"inputs": 1}').status == 422
    assert server.call("POST", "/predict", '{"inputs": 1}', {"Content-Encoding": "gzip"}).status == 422


def test_the_servers_modules_do_not_shadow_the_models(start: Start) -> None:
    code = "import worker, codec\ndef load(p):\n    pass\ndef predict(m, x):\n    return [worker.WHO, codec.WHO]\n"
    server = start(code, files={"worker.py": "WHO = 'mine'\n", "codec.py": "WHO = 'mine too'\n"})
    assert server.predict(0).json() == {"outputs": ["mine", "mine too"]}


def test_the_model_does_not_see_the_servers_secret(start: Start) -> None:
    code = "import os\ndef load(p):\n    pass\ndef predict(m, x):\n    return os.environ.get('AIRHUB_SERVE_SECRET')\n"
    server = start(code, AIRHUB_SERVE_SECRET="s3")
    assert server.predict(0, **{"X-AirHub-Secret": "s3"}).json() == {"outputs": None}


def test_it_runs_on_the_standard_library_alone(start: Start, tmp_path: Path) -> None:
    """A bare environment has no orjson, no uvloop, no NumPy; the folder has another name, and nothing else is there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    folder = tmp_path / "mounted" / "here"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    server = start(ECHO, python=(str(tmp_path / "bare" / "bin" / "python"), "-I"), folder=folder)
    assert server.predict({"a": [1.5, "ü", None]}).json() == {"outputs": {"a": [1.5, "ü", None]}}
    assert server.call("POST", "/predict", '{"inputs": NaN}').status == 422
    assert server.call("POST", "/predict", "x").status == 422
    tensor = {"name": "x", "shape": [2, 1], "datatype": "FP16", "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.call("POST", "/v2/models/model/infer", head + b"\x00\x3c\x00\x40", headers)
    assert answer.status == 200
    assert int(answer.headers["inference-header-content-length"]) < len(answer.body)


def test_it_runs_on_every_python_from_3_9_that_is_here(start: Start) -> None:
    found = [shutil.which(f"python3.{minor}") for minor in range(9, 15)]
    works = [path for path in found if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode]
    for python in {sys.executable, *works}:
        server = start(ECHO.replace("return inputs", "return inputs[0]"), python=(python, "-I"))
        assert server.predict([2]).json() == {"outputs": 2}
        assert server.predict([]).json()["message"] == "IndexError: list index out of range"
        tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
        answer = server.call("POST", "/v2/models/model/infer", json.dumps({"inputs": [tensor]}))
        assert answer.json()["outputs"][0]["data"] == [1.0, 2.0]
