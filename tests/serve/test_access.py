"""Who may call, by which path, and what health and metrics tell."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from .conftest import Serving, Start, until

SECRET = {"X-AirHub-Secret": "the-secret"}


def write_keys(path: Path, *keys: str) -> None:
    entries = [{"id": n, "sha256": hashlib.sha256(key.encode()).hexdigest()} for n, key in enumerate(keys)]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": entries}))
    os.replace(fresh, path)


def status(server: Serving, path: str, **headers: str) -> int:
    return server.call("POST", path, '{"inputs": 1}', {k.replace("_", "-"): v for k, v in headers.items()}).status


def test_keys_and_secret(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    write_keys(keys, "alpha")
    server = start(
        AIRHUB_SERVE_SECRET="the-secret",
        AIRHUB_SERVE_KEYS_FILE=keys,
        AIRHUB_INFERENCE_ID=7,
        AIRHUB_SERVE_PREFIXES="/services/airhub/endpoints/7",
    )
    route = "/airhub-endpoints/7/predict"
    assert status(server, route, Authorization="Bearer alpha") == 200
    assert status(server, route, Authorization="bearer alpha") == 200
    assert status(server, route, X_AirHub_Secret="the-secret") == 200
    assert status(server, "/predict", X_AirHub_Secret="the-secret") == 200
    assert status(server, "/services/airhub/endpoints/7/predict", X_AirHub_Secret="the-secret") == 200
    for path in (route, "/predict", "/services/airhub/endpoints/7/predict"):
        assert status(server, path) == 401
        assert status(server, path, Authorization="Bearer beta") == 401
        assert status(server, path, Authorization="token alpha") == 401
        assert status(server, path, X_AirHub_Secret="wrong") == 401
    answer = server.call("POST", route, '{"inputs": 1}')
    assert answer.json()["code"] == "unauthorized"
    assert answer.json()["errors"] == []
    assert server.call("POST", "/airhub-endpoints/77/predict", "{}", SECRET).status == 404

    write_keys(keys, "beta", "gamma")
    until(lambda: status(server, route, Authorization="Bearer beta") == 200)
    assert status(server, route, Authorization="Bearer alpha") == 401
    keys.write_text("{half")
    until(lambda: "cannot be read" in (status(server, route, Authorization="Bearer gamma") and server.text()))
    assert status(server, route, Authorization="Bearer gamma") == 200
    keys.unlink()
    until(lambda: status(server, route, Authorization="Bearer gamma") == 401)


def test_health_is_open_inside_and_closed_on_the_key_route(start: Start) -> None:
    server = start(AIRHUB_SERVE_SECRET="the-secret", AIRHUB_INFERENCE_ID=7)
    for path in ("/health", "/v2/health/live", "/v2/health/ready"):
        assert server.call("GET", path).status == 200
        assert server.call("GET", f"/airhub-endpoints/7{path}").status == 401
    assert server.call("GET", "/metrics").status == 401
    assert server.call("GET", "/v2").status == 401
    assert server.call("GET", "/v2/models/7", None, SECRET).status == 200


def test_a_refused_upload_still_reads_its_answer(start: Start) -> None:
    server = start(AIRHUB_SERVE_SECRET="the-secret")
    answer = server.call("POST", "/predict", b"x" * 2_000_000)
    assert (answer.status, answer.headers["connection"]) == (401, "close")


def test_metrics_count_requests_errors_and_time(start: Start) -> None:
    server = start("def load(p):\n    pass\ndef predict(m, x):\n    return 1 / x\n")
    for value in (1, 2, 0):
        server.predict(value)
    text = server.call("GET", "/metrics").body.decode()
    assert 'airhub_serve_requests_total{status="200"} 2' in text
    assert 'airhub_serve_requests_total{status="500"} 1' in text
    assert 'airhub_serve_request_duration_seconds_bucket{le="+Inf"} 3' in text
    assert server.metric("errors_total") == 1
    assert server.metric("in_flight") == 0
    assert server.metric("ready") == 1
    assert server.metric("last_request_timestamp_seconds") > 1_700_000_000
