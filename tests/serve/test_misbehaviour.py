"""Models that raise, hang, die, eat memory or print without end: the caller gets an error, the next request works."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import ECHO, Answer, Start, until

MODEL = """
import os, sys, time, resource

def load(model_path):
    return {"calls": 0}

def predict(model, inputs):
    model["calls"] += 1
    if inputs == "raise":
        raise ValueError("the colour of\\nthe sky is wrong")
    if inputs == "exit":
        sys.exit(4)
    if inputs == "die":
        os._exit(7)
    if inputs == "leave":
        if os.fork() == 0:
            time.sleep(600)
        os._exit(7)
    if inputs == "hang":
        time.sleep(600)
    if inputs == "spin":
        while True:
            pass
    if inputs == "print":
        print("x" * 20_000_000)
        sys.stderr.write("y" * 20_000_000)
    if inputs == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        return len(bytearray(2**34))
    if inputs == "kill":
        os.kill(os.getpid(), 9)
    if isinstance(inputs, float):
        time.sleep(inputs)
    return model["calls"]
"""


def test_what_predict_raises_is_told_and_logged(start: Start) -> None:
    server = start(MODEL)
    before = server.worker_pid()
    answer = server.predict("raise")
    assert answer.status == 500
    error = answer.json()
    assert error == {"status": 500, "code": "model_error", "message": error["message"], "errors": []}
    assert error["message"].startswith("ValueError: the colour of")
    log = server.text()
    assert "Traceback" in log and "infer.py" in log and "serve/worker.py" not in log
    assert "SystemExit: 4" in server.predict("exit").json()["message"]
    assert server.predict(0).json() == {"outputs": 3}
    assert server.worker_pid() == before


@pytest.mark.parametrize("how", ["hang", "spin"])
def test_a_predict_that_hangs_is_ended(start: Start, how: str) -> None:
    server = start(MODEL, AIRHUB_SERVE_TIMEOUT_SECONDS=0.5)
    began = time.monotonic()
    answer = server.predict(how)
    assert (answer.status, answer.json()["code"]) == (504, "model_timeout")
    assert time.monotonic() - began < 5
    assert server.predict(0).json() == {"outputs": 1}
    assert server.metric("model_restarts_total") == 1
    assert server.process.poll() is None


def test_requests_behind_one_that_hangs_are_answered_after_it(start: Start) -> None:
    server = start(MODEL, AIRHUB_SERVE_TIMEOUT_SECONDS=1.5)
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(server.predict, "hang")
        until(lambda: server.metric("in_flight") == 1)
        time_left = [threads.submit(server.predict, 0) for _ in range(5)]
        assert first.result().status == 504
        statuses = {future.result().status for future in time_left}
    assert statuses <= {200, 503}
    assert server.predict(0).status == 200


def test_out_of_memory_in_python_is_said_and_the_process_replaced(start: Start) -> None:
    server = start(MODEL)
    before = server.worker_pid()
    answer = server.predict("memory")
    assert (answer.status, answer.json()["code"]) == (500, "model_error")
    assert "memory" in answer.json()["message"]
    assert server.predict(0).json() == {"outputs": 1}
    assert server.worker_pid() != before


@pytest.mark.parametrize(("how", "word"), [("kill", "memory"), ("die", "status 7"), ("leave", "status 7")])
def test_a_process_that_dies_is_answered_for(start: Start, how: str, word: str) -> None:
    server = start(MODEL)
    answer = server.predict(how)
    assert (answer.status, answer.json()["code"]) == (500, "model_error")
    assert word in answer.json()["message"]
    assert server.predict(0).json() == {"outputs": 1}
    assert word in server.text()


@pytest.mark.parametrize("where", [0, 3, 9])
def test_what_is_sent_ahead_survives_the_death_of_the_process(start: Start, where: int) -> None:
    """Pipelined requests behind a quick model have been handed over already when it dies on the first."""
    server = start(MODEL)
    for _ in range(50):
        assert server.predict(0).status == 200
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(server.predict, ["die" if number == where else 0 for number in range(16)]))
    assert sorted(answer.status for answer in answers) == [200] * 15 + [500]
    assert answers[where].status == 500


def test_printing_megabytes_harms_nobody(start: Start) -> None:
    server = start(MODEL)
    assert server.predict("print").status == 200
    assert server.predict(0).status == 200
    assert server.log.stat().st_size > 40_000_000


def test_overload_is_refused_at_once_and_what_is_accepted_stays_quick(start: Start) -> None:
    """Capacity is 1 at once of 20 ms, 3 may wait; 12 clients ask for three times what fits."""
    server = start(MODEL, AIRHUB_SERVE_QUEUE=3)
    end = time.monotonic() + 3
    answers: list[tuple[float, Answer]] = []

    def client() -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            answer = server.predict(0.02)
            answers.append((time.monotonic() - began, answer))

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    before = resident(server.process.pid)
    for thread in threads:
        thread.join()
    assert resident(server.process.pid) - before < 8 * 2**20
    assert {answer.status for _, answer in answers} == {200, 503}
    accepted = sorted(seconds for seconds, answer in answers if answer.status == 200)
    refused = sorted(seconds for seconds, answer in answers if answer.status == 503)
    assert accepted[int(len(accepted) * 0.95)] < 1.0
    assert refused[len(refused) // 2] < 0.25
    busy = next(answer for _, answer in answers if answer.status == 503)
    assert int(busy.headers["retry-after"]) >= 1
    assert busy.json()["code"] == "runtime_unavailable"


def test_too_large_bodies_are_413(start: Start) -> None:
    code = "def load(p):\n    pass\ndef predict(m, x):\n    return 'x' * x if isinstance(x, int) else len(x)\n"
    server = start(code, AIRHUB_SERVE_MAX_REQUEST_BYTES=1000, AIRHUB_SERVE_MAX_RESPONSE_BYTES=500)
    assert server.predict("x" * 900).json() == {"outputs": 900}
    for body in (b'{"inputs": "' + b"x" * 5_000_000 + b'"}', iter([b"x" * 600] * 3)):
        answer = server.call("POST", "/predict", body)  # type: ignore[arg-type]
        assert (answer.status, answer.json()["code"]) == (413, "too_large")
    answer = server.predict(600)
    assert (answer.status, answer.json()["code"]) == (413, "too_large")
    assert server.predict(10).status == 200


def test_a_client_that_goes_leaves_the_line(start: Start) -> None:
    server = start(MODEL)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(server.predict, 1.0)
        until(lambda: server.metric("in_flight") == 1)
        body = b'{"inputs": 0}'
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            until(lambda: server.metric("queued") == 1)
        until(lambda: server.metric("queued") == 0)
        assert running.result().json() == {"outputs": 1}
    assert server.predict(0).json() == {"outputs": 2}


def test_sigterm_finishes_what_is_in_work_and_refuses_what_is_new(start: Start) -> None:
    server = start(MODEL)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(server.predict, 1.5)
        until(lambda: server.metric("in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.call("GET", "/v2/health/ready").status == 503)
        answer = server.predict(0)
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert running.result().json() == {"outputs": 1}
    assert server.process.wait(10) == 0


def test_no_time_passes_while_the_container_is_frozen(start: Start) -> None:
    server = start(MODEL, AIRHUB_SERVE_TIMEOUT_SECONDS=1)
    pids = (server.process.pid, server.worker_pid())
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(server.predict, 0.7)
        until(lambda: server.metric("in_flight") == 1)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert running.result().json() == {"outputs": 1}
    assert server.worker_pid() == pids[1]


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (ECHO.replace("return model_path", "raise RuntimeError('no weights')"), "RuntimeError: no weights"),
        ("def load(p):\n    pass\n", "does not define predict"),
        ("def load(p:\n", "SyntaxError"),
        ("batch_size = 'many'\n" + ECHO, "batch_size"),
        (None, "no infer.py"),
    ],
)
def test_a_load_that_fails_ends_the_server_with_3(start: Start, code: str | None, word: str) -> None:
    server = start(code, ready=False)
    assert server.process.wait(20) == 3
    assert word in server.text()


def test_killed_while_loading_ends_the_server_as_if_it_had_been_killed(start: Start) -> None:
    server = start("import os\ndef load(p):\n    os.kill(os.getpid(), 9)\ndef predict(m, x):\n    pass\n", ready=False)
    assert server.process.wait(20) == 137
    assert "memory" in server.text()


def test_wrong_settings_end_the_server_with_2(start: Start) -> None:
    server = start(ready=False, AIRHUB_SERVE_TIMEOUT_SECONDS="soon")
    assert server.process.wait(20) == 2
    assert "AIRHUB_SERVE_TIMEOUT_SECONDS" in server.text()


def test_requests_wait_while_the_model_is_loaded(start: Start, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    code = (
        "import os, time\ndef load(p):\n"
        f"    while not os.path.exists({str(flag)!r}):\n        time.sleep(0.01)\n"
        "def predict(m, x):\n    return x\n"
    )
    server = start(code, ready=False)
    until(lambda: live(server))
    assert server.call("GET", "/v2/health/ready").status == 503
    assert server.call("GET", "/health").status == 503
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.predict, 5)
        until(lambda: server.metric("queued") == 1)
        flag.touch()
        assert waiting.result().json() == {"outputs": 5}
    assert server.call("GET", "/v2/health/ready").status == 200
    assert server.call("GET", "/health").json() == {"status": "ok"}


def test_the_model_goes_with_a_server_that_is_killed(start: Start) -> None:
    server = start(MODEL)
    worker = server.worker_pid()
    server.process.kill()
    server.process.wait()
    until(lambda: not alive(worker))


def test_several_at_once_when_the_model_says_so(start: Start) -> None:
    server = start("concurrency = 4\n" + MODEL, AIRHUB_SERVE_TIMEOUT_SECONDS=3)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        assert all(answer.status == 200 for answer in threads.map(server.predict, [0.5] * 4))
    assert time.monotonic() - began < 1.9
    with ThreadPoolExecutor(4) as threads:
        statuses = [answer.status for answer in threads.map(server.predict, ["hang", 0.0, 0.0, 0.0])]
    assert statuses == [504, 200, 200, 200]


def test_batches_when_the_model_says_so(start: Start) -> None:
    code = (
        "batch_size = 8\nbatch_wait_seconds = 0.5\ndef load(p):\n    pass\n"
        "def predict(m, many):\n    if 13 in many:\n        raise ValueError('unlucky')\n"
        "    return [[x, len(many)] for x in many]\n"
    )
    server = start(code)
    with ThreadPoolExecutor(8) as threads:
        answers = [answer.json()["outputs"] for answer in threads.map(server.predict, range(8))]
    assert [number for number, _ in answers] == list(range(8))
    assert max(size for _, size in answers) > 1
    with ThreadPoolExecutor(8) as threads:
        statuses = [answer.status for answer in threads.map(server.predict, [1, 2, 13, 4, 5, 6, 7, 8])]
    assert statuses == [200, 200, 500, 200, 200, 200, 200, 200]


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no VmRSS")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def live(server: object) -> bool:
    try:
        return server.call("GET", "/v2/health/live").status == 200  # type: ignore[attr-defined]
    except OSError:
        return False
