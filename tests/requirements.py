"""What a test needs of the machine; a missing need skips with its reason, or fails where all is required."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess

import pytest


def require(*needs: str) -> None:
    """Skip the calling test unless every need is met: ``docker``, ``root``, ``chromium``, ``node``, ``postgresql``.

    With ``AIRHUB_TEST_REQUIRE=all`` a missing need is a failure.
    """
    for need in needs:
        reason = _missing(need)
        if not reason:
            continue
        if os.environ.get("AIRHUB_TEST_REQUIRE") == "all":
            pytest.fail(f"{need} is required here: {reason}")
        pytest.skip(reason)


@functools.cache
def _missing(need: str) -> str:
    if need == "docker":
        return _missing_docker()
    if need == "root":
        return "" if os.geteuid() == 0 else "needs root"
    if need == "chromium":
        return "" if shutil.which("chromium") else "no chromium on PATH"
    if need == "node":
        return "" if shutil.which("node") and shutil.which("npm") else "no node and npm on PATH"
    if need == "postgresql":
        found = shutil.which("initdb") or _newest_initdb()
        return "" if found else "no PostgreSQL server (initdb) installed"
    raise ValueError(f"unknown need {need!r}")


def _missing_docker() -> str:
    path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            probe.connect(path)
    except OSError as exc:
        return f"no Docker engine answers on {path}: {exc}"
    return ""


def _newest_initdb() -> str:
    run = subprocess.run("ls -d /usr/lib/postgresql/*/bin/initdb", shell=True, capture_output=True, text=True)
    return run.stdout.split()[-1] if run.stdout.split() else ""
