"""Counts of one server, written in the Prometheus text format."""

from __future__ import annotations

import time
from bisect import bisect_left

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Requests by status and their latency. Health and metrics do not count."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.last_request = 0.0
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def count(self, status: int, seconds: float) -> None:
        """Count one answered request and how long it took."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds
        self.last_request = time.time()

    def text(self, in_flight: int, queued: int, restarts: int, ready: bool) -> bytes:
        """Return the page that a Prometheus server scrapes."""
        name = "airhub_serve_requests_total"
        lines = [f"# HELP {name} Requests answered, by status; 499: the client had gone.", f"# TYPE {name} counter"]
        lines += [f'{name}{{status="{status}"}} {count}' for status, count in sorted(self.statuses.items())]
        errors = sum(count for status, count in self.statuses.items() if status >= 500)
        lines += _one("errors_total", "counter", "Requests answered with 500 or above.", errors)
        lines += _one("model_restarts_total", "counter", "Times the model's process was started again.", restarts)
        lines += _one("in_flight", "gauge", "Requests that the model works on.", in_flight)
        lines += _one("queued", "gauge", "Requests that wait for the model.", queued)
        lines += _one("ready", "gauge", "1 when the model is loaded.", int(ready))
        stamp = f"{self.last_request:.3f}"
        lines += _one("last_request_timestamp_seconds", "gauge", "When the last request was answered; 0: none.", stamp)
        name = "airhub_serve_request_duration_seconds"
        lines += [f"# HELP {name} Time from a request's head to its answer.", f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._buckets):  # noqa: B905 (Python 3.9 has no strict)
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        lines += [f"{name}_sum {self._seconds:.6f}", f"{name}_count {total}", ""]
        return "\n".join(lines).encode()


def _one(name: str, kind: str, text: str, value: object) -> list[str]:
    name = f"airhub_serve_{name}"
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]
