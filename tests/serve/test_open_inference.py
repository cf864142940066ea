"""The Open Inference Protocol over REST, with Triton's published client and by hand."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from .conftest import Serving, Start

CODE = """
import numpy as np

def load(model_path):
    pass

def predict(model, inputs):
    if isinstance(inputs, dict):
        return {"sum": (np.array(inputs["a"]) + np.array(inputs["b"])).astype("float32"), "names": ["x", "y"]}
    if inputs == [["records"]]:
        return [{"label": "cat", "score": 0.5}, {"label": "dog", "score": None}]
    if inputs == [["raise"]]:
        raise ValueError("not today")
    return inputs
"""
TYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


def infer(server: Serving, *tensors: dict[str, Any], path: str = "/v2/models/digits/infer", **fields: Any) -> Any:
    return server.call("POST", path, json.dumps({"inputs": list(tensors), **fields}))


def test_metadata_and_health(start: Start) -> None:
    server = start(CODE, AIRHUB_INFERENCE_NAME="digits")
    assert server.call("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert server.call("GET", "/v2/health/live").json() == {"live": True}
    assert server.call("GET", "/v2/health/ready").json() == {"ready": True}
    model = server.call("GET", "/v2/models/digits").json()
    assert (model["name"], model["versions"], model["inputs"]) == ("digits", ["1"], [])
    assert server.call("GET", "/v2/models/digits/versions/1").json() == model
    assert server.call("GET", "/v2/models/digits/ready").json()["ready"] is True
    assert server.call("GET", "/v2/models/digits/versions/1/ready").status == 200
    for path in ("/v2/models/other", "/v2/models/digits/versions/2", "/v2/models/digits/other", "/v2/other"):
        answer = server.call("GET", path)
        assert (answer.status, answer.json()["code"]) == (404, "not_found")
        assert answer.json()["error"] == answer.json()["message"]
    assert server.call("GET", "/v2/models/digits/infer").status == 405
    assert server.call("POST", "/v2/models/digits/ready").status == 405


@pytest.mark.parametrize("name", ["a name", "büro/1"])
def test_any_name_may_be_a_models(start: Start, name: str) -> None:
    server = start(CODE, AIRHUB_INFERENCE_NAME=name)
    for escaped in (quote(name), quote(name, safe="")):
        assert server.call("GET", f"/v2/models/{escaped}/ready").status == 200
        assert server.call("GET", f"/v2/models/{escaped}").json()["name"] == name


def test_one_tensor_gets_its_shape_and_several_come_by_name(start: Start) -> None:
    server = start(CODE, AIRHUB_INFERENCE_NAME="digits")
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    answer = infer(server, tensor, id="mine").json()
    assert answer["id"] == "mine"
    assert answer["model_name"] == "digits"
    assert answer["outputs"] == [{"name": "output", "datatype": "FP64", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]
    nested = {**tensor, "data": [[1, 2, 3], [4, 5, 6]]}
    assert infer(server, nested).json()["outputs"] == answer["outputs"]
    a, b = {**tensor, "name": "a"}, {**tensor, "name": "b", "datatype": "INT8"}
    outputs = infer(server, a, b, path="/v2/models/digits/versions/1/infer").json()["outputs"]
    assert outputs[0] == {"name": "sum", "datatype": "FP32", "shape": [2, 3], "data": [2, 4, 6, 8, 10, 12]}
    assert outputs[1] == {"name": "names", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]}
    assert [o["name"] for o in infer(server, a, b, outputs=[{"name": "names"}]).json()["outputs"]] == ["names"]
    assert infer(server, a, b, outputs=[{"name": "none"}]).status == 422
    records = infer(server, {"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["records"]}).json()["outputs"]
    assert records[0]["datatype"] == "BYTES"
    assert json.loads(records[0]["data"][0]) == {"label": "cat", "score": 0.5}


@pytest.mark.parametrize("shape", [[0], [2, 0], [0, 3], []])
def test_empty_shapes(start: Start, shape: list[int]) -> None:
    server = start(CODE, AIRHUB_INFERENCE_NAME="digits")
    data = [7] if shape == [] else []
    answer = infer(server, {"name": "x", "shape": shape, "datatype": "INT32", "data": data})
    assert answer.status == 200
    assert answer.json()["outputs"][0]["shape"] == (shape if shape and shape[0] else [1] if shape == [] else [0])


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "x", "shape": [2], "datatype": "FP32", "data": [1]},
        {"name": "x", "shape": [1], "datatype": "FP31", "data": [1]},
        {"name": "x", "shape": [-1], "datatype": "FP32", "data": [1]},
        {"name": "x", "shape": [1], "datatype": "INT8", "data": [200]},
        {"name": "x", "shape": [1], "datatype": "UINT8", "data": [-1]},
        {"name": "x", "shape": [1], "datatype": "INT64", "data": [1.5]},
        {"name": "x", "shape": [1], "datatype": "BYTES", "data": [1]},
        {"name": "x", "shape": [1], "datatype": "BOOL", "data": ["yes"]},
        {"name": "x", "shape": [1], "datatype": "FP32"},
        {"shape": [1], "datatype": "FP32", "data": [1]},
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "extra": 1},
        {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}},
        {"name": "x", "shape": [10**12, 10**12], "datatype": "FP32", "data": [1]},
    ],
)
def test_wrong_tensors_are_422(start: Start, tensor: dict[str, Any]) -> None:
    server = start(CODE, AIRHUB_INFERENCE_NAME="digits")
    answer = infer(server, tensor)
    assert (answer.status, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["field"].startswith("inputs[0]")


def test_tritons_client_works_unchanged(start: Start) -> None:
    np = pytest.importorskip("numpy")
    triton = pytest.importorskip("tritonclient.http")
    server = start(CODE, AIRHUB_INFERENCE_NAME="digits")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    try:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
        assert client.get_server_metadata()["name"] == "airhub"
        assert client.get_model_metadata("digits", "1")["name"] == "digits"
        for datatype in TYPES:
            data = np.array([[0, 1], [1, 0]], dtype=to_numpy(datatype))
            for binary in (True, False):
                if datatype == "FP16" and not binary:
                    continue
                tensor = triton.InferInput("x", list(data.shape), datatype)
                tensor.set_data_from_numpy(data, binary_data=binary)
                answer = client.infer("digits", [tensor], request_id="7")
                assert answer.as_numpy("output").tolist() == data.tolist(), datatype
                assert answer.get_response()["id"] == "7"
        words = np.array([["ein", "zwei"]], dtype=object)
        tensor = triton.InferInput("x", [1, 2], "BYTES")
        tensor.set_data_from_numpy(words)
        assert client.infer("digits", [tensor]).as_numpy("output").tolist() == [[b"ein", b"zwei"]]
        tensor.set_data_from_numpy(np.array([[b"\xff\x00", b""]], dtype=object))
        assert client.infer("digits", [tensor]).as_numpy("output").tolist() == [[b"\xff\x00", b""]]
        both = []
        for name in ("a", "b"):
            tensor = triton.InferInput(name, [2], "FP32")
            tensor.set_data_from_numpy(np.array([1, 2], dtype="float32"))
            both.append(tensor)
        wanted = [triton.InferRequestedOutput(name, binary_data=name == "sum") for name in ("sum", "names")]
        answer = client.infer("digits", both, outputs=wanted)
        assert answer.as_numpy("sum").tolist() == [2.0, 4.0]
        assert answer.as_numpy("sum").dtype == np.float32
        assert answer.as_numpy("names").tolist() == ["x", "y"]
        tensor = triton.InferInput("x", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["raise"]], dtype=object))
        with pytest.raises(Exception, match="ValueError: not today"):
            client.infer("digits", [tensor])
    finally:
        client.close()


def to_numpy(datatype: str) -> str:
    from tritonclient.utils import triton_to_np_dtype

    return triton_to_np_dtype(datatype)
