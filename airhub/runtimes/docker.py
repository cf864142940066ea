"""Runs workloads as containers of one Docker Engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError
from traitlets import Dict, Integer, List, Unicode, default, validate

from airhub.domain.workload import (
    LABEL_ATTEMPT,
    LABEL_HOST,
    LABEL_ID,
    LABEL_KIND,
    LABEL_OWNER,
    LABEL_TASK,
    Observation,
    Phase,
    TaskState,
    WorkloadName,
    WorkloadSpec,
)
from airhub.errors import GpuUnavailable, ImageMissing, InvalidRequest, PathChanged, RuntimeUnavailable
from airhub.runtimes.base import Ability, Runtime, RuntimeEvent
from airhub.runtimes.gpus import nvml_gpu_ids

KILLED_EXIT_CODE = 137
_ACTIONS = {
    "start": "start",
    "die": "exit",
    "oom": "oom",
    "pause": "freeze",
    "unpause": "thaw",
    "destroy": "remove",
}
_CONNECTION_ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError)


class DockerRuntime(Runtime):
    """Containers on one engine, apart from each other on a bridge of their own."""

    abilities = frozenset({Ability.FREEZE, Ability.GPUS, Ability.TASKS, Ability.LIMITS, Ability.ISOLATION})

    url = Unicode(
        help="""Where the engine listens: `unix:///var/run/docker.sock` or `tcp://host:2375`.

        The default is DOCKER_HOST, else the local socket. The service must be able to reach the containers' addresses,
        so the engine runs on the same machine.
        """
    ).tag(config=True)

    user = Unicode(
        help="""User and group (numbers, `uid:gid`) as whom jobs run in their containers.

        The default is the service's own user, or 1000:100 when that is root: a job never runs as root unless you write
        0:0 here. What jobs write belongs to this user.
        """
    ).tag(config=True)

    network = Unicode(
        help="""Name of the bridge network of jobs and models; made on demand, with traffic between containers off.

        The default carries the instance's name.
        """
    ).tag(config=True)

    gpu_ids = List(
        Unicode(),
        default_value=None,
        allow_none=True,
        help="""Ids of the GPUs that jobs may use, as `nvidia-smi -L` numbers or names them.

        The default asks the driver (NVML) and is empty where there is none. Fewer than there are keeps the rest for others.
        """,
    ).tag(config=True)

    shm_bytes = Integer(
        1 << 30,
        help="""Size of /dev/shm in bytes, shared memory of data loaders. It is a bound, not a reservation; PyTorch's loaders
        fail with "bus error" when it is too small.""",
    ).tag(config=True)

    extra_host_config = Dict(
        help="""Further entries of the engine's HostConfig for every container, for example {"Runtime": "runsc"}.

        They win over AirHub's own: one that loosens the isolation loosens it for all users.
        """
    ).tag(config=True)

    @default("url")
    def _default_url(self) -> str:
        return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")

    @default("user")
    def _default_user(self) -> str:
        return "1000:100" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"

    @default("network")
    def _default_network(self) -> str:
        return f"{self.instance}-jobs"

    @validate("user")
    def _check_user(self, proposal: Any) -> str:
        if not re.fullmatch(r"\d+:\d+", proposal["value"]):
            raise ValueError(f"DockerRuntime.user must be two numbers as 1000:100, not {proposal['value']!r}")
        return str(proposal["value"])

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._docker: aiodocker.Docker | None = None
        self._network_known = False
        self._gateway: str | None = None

    @property
    def uid_gid(self) -> tuple[int, int]:
        """User and group of what runs, as numbers."""
        uid, _, gid = self.user.partition(":")
        return int(uid), int(gid)

    async def open(self) -> None:
        if self._docker is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
            self._docker = aiodocker.Docker(url=self.url, timeout=timeout)
        async with self._border():
            await self._docker.version()
        await self._ensure_network(self.network)

    async def close(self) -> None:
        if self._docker is not None:
            with contextlib.suppress(Exception):
                await self._docker.close()
            self._docker = None

    async def launch(self, spec: WorkloadSpec) -> None:
        network = self.network
        if spec.private_network:
            network = self._private_network(spec.name)
            await self._ensure_network(network, str(spec.name))
        else:
            await self._ensure_network(network)
        made: list[str] = []
        try:
            await asyncio.gather(*(self._launch_task(spec, index, network, made) for index in range(spec.tasks)))
        except BaseException:
            for name in made:
                await self._delete(name)
            raise

    async def observe(self, name: WorkloadName) -> Observation:
        first = await self._inspect(self._container(name, 0))
        if first is None and not await self._siblings(name):
            return Observation(name)
        tasks = [] if first is None else [_task_state(first, 0)]
        count = int(first["Config"]["Labels"].get("airhub.tasks", "1")) if first else 0
        others = range(1, count) if first else await self._siblings(name)
        for index, found in zip(
            others, await asyncio.gather(*(self._inspect(self._container(name, i)) for i in others)), strict=True
        ):
            tasks.append(TaskState(index, Phase.ABSENT) if found is None else _task_state(found, index))
        return Observation(name, tuple(tasks))

    async def stop(self, name: WorkloadName, grace_seconds: float) -> None:
        await asyncio.gather(*(self._stop_task(container, grace_seconds) for container in await self._containers(name)))

    async def kill(self, name: WorkloadName) -> None:
        for container in await self._containers(name):
            await self._post(f"containers/{container}/kill", ok=(404, 409))

    async def freeze(self, name: WorkloadName) -> None:
        frozen = []
        for container in await self._containers(name):
            status, message = await self._try_post(f"containers/{container}/pause")
            if status in (204, 200) or (status == 409 and "already paused" in message):
                frozen.append(container)
            elif status not in (404, 409, 500) or "not running" not in message:
                for other in frozen:
                    await self._post(f"containers/{other}/unpause", ok=(404, 409, 500))
                raise RuntimeUnavailable(f"The engine could not freeze the container: {message}")

    async def thaw(self, name: WorkloadName) -> None:
        for container in await self._containers(name):
            await self._post(f"containers/{container}/unpause", ok=(404, 409, 500))

    async def remove(self, name: WorkloadName) -> None:
        await asyncio.gather(*(self._delete(container) for container in await self._containers(name)))
        await self._remove_network(self._private_network(name))

    async def list(self) -> Sequence[Observation]:
        filters = json.dumps({"label": [f"{LABEL_HOST}={self.instance}", LABEL_KIND]})
        async with self._border():
            listed = await self._engine._query_json("containers/json", params={"all": "1", "filters": filters})
        names = {name for item in listed if (name := _workload_of(item["Labels"])) is not None}
        return [await self.observe(name) for name in sorted(names)]

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        delay = 0.2
        while True:
            try:
                yield RuntimeEvent(None, "reconnected")
                async for event in self._event_stream():
                    delay = 0.2
                    yield event
            except (DockerError, RuntimeUnavailable, *_CONNECTION_ERRORS) as exc:
                self.log.warning("The engine's event stream broke off: %s", exc)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def log(self, name: WorkloadName, skip_bytes: int = 0) -> AsyncIterator[bytes]:  # type: ignore[override]
        containers = await self._containers(name)
        if len(containers) <= 1:
            source = self._task_log(containers[0]) if containers else _nothing()
        else:
            source = self._merged_logs(containers)
        async for data in source:
            if skip_bytes >= len(data):
                skip_bytes -= len(data)
                continue
            yield data[skip_bytes:] if skip_bytes else data
            skip_bytes = 0

    async def image_available(self, reference: str) -> bool:
        async with self._border():
            try:
                await self._engine.images.inspect(reference)
            except DockerError as exc:
                if exc.status in (400, 404):
                    return False
                raise
        return True

    async def pull(self, reference: str) -> AsyncIterator[str]:  # type: ignore[override]
        try:
            async for item in self._engine.images.pull(reference, stream=True):
                if "error" in item:
                    raise ImageMissing(f"No registry within reach has the image {reference}: {item['error']}")
                yield " ".join(str(item[key]) for key in ("id", "status", "progress") if item.get(key))
        except DockerError as exc:
            raise ImageMissing(f"The image {reference} cannot be pulled: {exc.message}") from exc
        except _CONNECTION_ERRORS as exc:
            raise self._away(exc) from exc

    async def gpus(self) -> Sequence[str]:
        if self.gpu_ids is not None:
            return tuple(self.gpu_ids)
        return await asyncio.to_thread(nvml_gpu_ids)

    async def capacity(self) -> tuple[float, int]:
        async with self._border():
            info = await self._engine._query_json("info")
        return float(info["NCPU"]), int(info["MemTotal"])

    async def gateway(self) -> str:
        """Return the address under which containers reach this host: that of the engine's default bridge."""
        if self._gateway is None:
            async with self._border():
                bridge = await self._engine._query_json("networks/bridge")
            self._gateway = bridge["IPAM"]["Config"][0].get("Gateway") or "172.17.0.1"
        return self._gateway

    # One task

    async def _launch_task(self, spec: WorkloadSpec, index: int, network: str, made: list[str]) -> None:
        name = self._container(spec.name, index)
        status, message = await self._try_post(
            "containers/create", params={"name": name}, data=self._config(spec, index, network)
        )
        if status == 409:
            if not spec.restartable or not await self._is_exited(name):
                if await self._is_created(name):
                    await self._start(spec, name, made)
                return
            await self._delete(name)
            status, message = await self._try_post(
                "containers/create", params={"name": name}, data=self._config(spec, index, network)
            )
        if status != 201:
            raise self._refusal(spec, status, message)
        made.append(name)
        await self._start(spec, name, made)

    async def _start(self, spec: WorkloadSpec, name: str, made: list[str]) -> None:
        status, message = await self._try_post(f"containers/{name}/start")
        if status in (200, 204, 304):
            return
        if name not in made:
            await self._delete(name)
        raise self._refusal(spec, status, message)

    def _config(self, spec: WorkloadSpec, index: int, network: str) -> dict[str, Any]:
        env = {"HOME": "/tmp", **spec.env}
        if index < len(spec.task_env):
            env.update(spec.task_env[index])
        env = {key: value.replace("{task:0}", "task0") for key, value in env.items()}
        uid, gid = self.uid_gid
        host: dict[str, Any] = {
            "NetworkMode": network,
            "Init": True,
            "Mounts": [
                {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}
                for mount in spec.mounts
            ],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": spec.shm_bytes or self.shm_bytes,
            "PidsLimit": spec.pids_limit,
            "LogConfig": {"Type": "json-file", "Config": {}},
            "RestartPolicy": {"Name": "no"},
            "ExtraHosts": ["host.docker.internal:host-gateway"],
        }
        if spec.memory_bytes is not None:
            host["Memory"] = host["MemorySwap"] = max(spec.memory_bytes, 6 << 20)
        if spec.cpus is not None:
            host["NanoCpus"] = int(spec.cpus * 1e9)
        if index < len(spec.gpu_ids) and spec.gpu_ids[index]:
            devices = list(spec.gpu_ids[index])
            host["DeviceRequests"] = [{"Driver": "", "DeviceIDs": devices, "Capabilities": [["gpu"]]}]
        host.update(self.extra_host_config)
        config: dict[str, Any] = {
            "Image": spec.image,
            "Env": [f"{key}={value}" for key, value in env.items()],
            "WorkingDir": spec.working_dir,
            "User": f"{uid}:{gid}",
            "Tty": False,
            "OpenStdin": False,
            "Labels": {**spec.labels, **self._labels(spec, index)},
            "HostConfig": host,
        }
        if spec.command:
            config["Cmd"] = list(spec.command)
            config["Entrypoint"] = []
        if spec.private_network:
            config["Hostname"] = f"task{index}"
            config["NetworkingConfig"] = {"EndpointsConfig": {network: {"Aliases": [f"task{index}"]}}}
        return config

    def _labels(self, spec: WorkloadSpec, index: int) -> dict[str, str]:
        return {
            LABEL_HOST: self.instance,
            LABEL_KIND: spec.name.kind,
            LABEL_ID: str(spec.name.id),
            LABEL_ATTEMPT: str(spec.name.attempt),
            LABEL_OWNER: spec.owner,
            LABEL_TASK: str(index),
            "airhub.tasks": str(spec.tasks),
            "airhub.port": str(spec.port or ""),
        }

    def _refusal(self, spec: WorkloadSpec, status: int, message: str) -> RuntimeUnavailable | InvalidRequest:
        """Turn the engine's no into the error that says what to do."""
        low = message.lower()
        if status == 404 and "no such image" in low or "pull access denied" in low:
            return ImageMissing(
                f"The image {spec.image} is not on the engine. Ask your admin to build or pull it (`airhub images list`)."
            )
        if "could not select device driver" in low or "nvidia-container" in low or "unknown device" in low:
            return GpuUnavailable(
                "The engine cannot give GPUs to containers: the NVIDIA Container Toolkit is not set up on this machine, "
                f"or the device is gone. The engine said: {message}"
            )
        if "bind source path does not exist" in low or "invalid mount config" in low and "source" in low:
            return PathChanged(f"A folder of this job is no longer there: {message}")
        if "error while creating mount source path" in low or "mounting" in low and "no such file" in low:
            return PathChanged(f"A folder of this job cannot be mounted any more: {message}")
        if status in (400, 404, 409, 500) and "executable file not found" in low:
            return InvalidRequest.of("command", f"cannot be run in image {spec.image}: {message}")
        if status == 400 or "oci runtime create failed" in low:
            return InvalidRequest(f"The engine refuses to run this: {message}")
        return RuntimeUnavailable(f"The engine could not start the container: {message}")

    async def _stop_task(self, container: str, grace_seconds: float) -> None:
        """Thaw, SIGTERM, grace, SIGKILL; the engine does the last three and answers when it is over."""
        await self._post(f"containers/{container}/unpause", ok=(404, 409, 500))
        seconds = max(int(grace_seconds + 0.999), 0)
        await self._post(f"containers/{container}/stop", params={"t": str(seconds)}, ok=(304, 404))

    async def _is_exited(self, container: str) -> bool:
        found = await self._inspect(container)
        return found is None or found["State"]["Status"] in ("exited", "dead")

    async def _is_created(self, container: str) -> bool:
        found = await self._inspect(container)
        return found is not None and found["State"]["Status"] == "created"

    async def _delete(self, container: str) -> None:
        for _ in range(100):
            status, message = await self._try("DELETE", f"containers/{container}", params={"force": "1", "v": "1"})
            if status in (200, 204, 404):
                return
            if status != 409:
                raise RuntimeUnavailable(f"The engine could not remove container {container}: {message}")
            # Another removal of the same container is under way; wait for it to be over.
            await asyncio.sleep(0.05)

    async def _inspect(self, container: str) -> dict[str, Any] | None:
        async with self._border():
            try:
                return await self._engine._query_json(f"containers/{container}/json")
            except DockerError as exc:
                if exc.status == 404:
                    return None
                raise

    # Names

    def _container(self, name: WorkloadName, index: int) -> str:
        suffix = f"-t{index}" if index else ""
        return f"{self.instance}-{name}{suffix}"

    def _private_network(self, name: WorkloadName) -> str:
        return f"{self.instance}-{name}-net"

    async def _containers(self, name: WorkloadName) -> list[str]:
        """Return the names of a workload's containers, by index."""
        return [self._container(name, index) for index in await self._siblings(name)]

    async def _siblings(self, name: WorkloadName) -> list[int]:
        labels = [f"{LABEL_HOST}={self.instance}", f"{LABEL_KIND}={name.kind}", f"{LABEL_ID}={name.id}",
                  f"{LABEL_ATTEMPT}={name.attempt}"]
        async with self._border():
            found = await self._engine._query_json(
                "containers/json", params={"all": "1", "filters": json.dumps({"label": labels})}
            )
        return sorted(int(item["Labels"].get(LABEL_TASK, "0")) for item in found)

    # Networks

    async def _ensure_network(self, name: str, workload: str | None = None) -> None:
        if workload is None and self._network_known:
            return
        options = {} if workload else {"com.docker.network.bridge.enable_icc": "false"}
        labels = {LABEL_HOST: self.instance}
        if workload is not None:
            labels["airhub.workload"] = workload
        config = {"Name": name, "Driver": "bridge", "CheckDuplicate": True, "Options": options, "Labels": labels}
        status, message = await self._try_post("networks/create", data=config)
        if status not in (201, 409):
            raise RuntimeUnavailable(f"The engine could not make the network {name}: {message}")
        if workload is None:
            self._network_known = True

    async def _remove_network(self, name: str) -> None:
        status, message = await self._try("DELETE", f"networks/{name}")
        if status not in (200, 204, 404):
            self.log.warning("Network %s could not be removed: %s", name, message)

    # Streams

    async def _event_stream(self) -> AsyncIterator[RuntimeEvent]:
        filters = {"type": ["container"], "label": [f"{LABEL_HOST}={self.instance}"], "event": list(_ACTIONS)}
        async with self._engine._query(
            "events", params={"filters": json.dumps(filters)}, timeout=aiohttp.ClientTimeout(total=None)
        ) as response:
            buffer = b""
            async for chunk in response.content.iter_any():
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    if not line.strip():
                        continue
                    event = json.loads(line)
                    name = _workload_of(event.get("Actor", {}).get("Attributes", {}))
                    if name is not None:
                        yield RuntimeEvent(name, _ACTIONS[event["Action"]])

    async def _task_log(self, container: str) -> AsyncIterator[bytes]:
        params = {"stdout": "1", "stderr": "1", "follow": "1"}
        try:
            async with self._engine._query(
                f"containers/{container}/logs", params=params, timeout=aiohttp.ClientTimeout(total=None)
            ) as response:
                async for data in _demultiplexed(response.content):
                    yield data
        except DockerError as exc:
            if exc.status in (404, 409):
                return
            raise RuntimeUnavailable(f"The engine cannot read a log: {exc.message}") from exc
        except _CONNECTION_ERRORS as exc:
            raise self._away(exc) from exc

    async def _merged_logs(self, containers: Sequence[str]) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None | BaseException] = asyncio.Queue(maxsize=256)

        async def read(index: int, container: str) -> None:
            rest = b""
            try:
                async for data in self._task_log(container):
                    *lines, rest = (rest + data).split(b"\n")
                    if lines:
                        await queue.put(b"".join(b"[%d] %s\n" % (index, line) for line in lines))
                if rest:
                    await queue.put(b"[%d] %s\n" % (index, rest))
                await queue.put(None)
            except RuntimeUnavailable as exc:
                await queue.put(exc)

        readers = [asyncio.create_task(read(index, name)) for index, name in enumerate(containers)]
        try:
            left = len(readers)
            while left:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    # The border to the engine

    @property
    def _engine(self) -> aiodocker.Docker:
        if self._docker is None:
            raise RuntimeUnavailable("AirHub is not connected to its Docker engine.")
        return self._docker

    @contextlib.asynccontextmanager
    async def _border(self) -> AsyncIterator[None]:
        try:
            yield
        except DockerError as exc:
            raise RuntimeUnavailable(f"The Docker engine says: {exc.message}") from exc
        except _CONNECTION_ERRORS as exc:
            raise self._away(exc) from exc

    def _away(self, exc: BaseException) -> RuntimeUnavailable:
        return RuntimeUnavailable(f"The Docker engine at {self.url} does not answer ({exc or type(exc).__name__}).")

    async def _try(
        self, method: str, path: str, params: Mapping[str, str] | None = None, data: Any = None
    ) -> tuple[int, str]:
        """Ask the engine; return its status and, where it refused, its words."""
        try:
            async with self._engine._query(path, method=method, params=params, data=data) as response:
                await response.read()
                return response.status, ""
        except DockerError as exc:
            return exc.status, exc.message
        except _CONNECTION_ERRORS as exc:
            raise self._away(exc) from exc

    async def _try_post(self, path: str, params: Mapping[str, str] | None = None, data: Any = None) -> tuple[int, str]:
        return await self._try("POST", path, params, data)

    async def _post(self, path: str, params: Mapping[str, str] | None = None, ok: Sequence[int] = ()) -> None:
        status, message = await self._try_post(path, params)
        if status >= 300 and status not in ok:
            raise RuntimeUnavailable(f"The Docker engine says: {message}")


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _demultiplexed(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the payloads of the engine's frames: 4 bytes of stream kind, 4 of length (big endian), then data."""
    buffer = bytearray()
    async for chunk in content.iter_any():
        buffer += chunk
        payload = bytearray()
        position = 0
        while len(buffer) - position >= 8:
            length = int.from_bytes(buffer[position + 4 : position + 8], "big")
            if len(buffer) - position - 8 < length:
                break
            payload += buffer[position + 8 : position + 8 + length]
            position += 8 + length
        del buffer[:position]
        if payload:
            yield bytes(payload)


def _workload_of(labels: Mapping[str, str]) -> WorkloadName | None:
    try:
        return WorkloadName(labels[LABEL_KIND], int(labels[LABEL_ID]), int(labels[LABEL_ATTEMPT]))
    except (KeyError, ValueError):
        return None


def _task_state(found: Mapping[str, Any], index: int) -> TaskState:
    state = found["State"]
    phase = {
        "created": Phase.CREATED,
        "running": Phase.RUNNING,
        "restarting": Phase.RUNNING,
        "paused": Phase.FROZEN,
        "removing": Phase.EXITED,
        "exited": Phase.EXITED,
        "dead": Phase.EXITED,
    }[state["Status"]]
    address = None
    port = found["Config"]["Labels"].get("airhub.port")
    if port and phase in (Phase.RUNNING, Phase.FROZEN):
        networks = found["NetworkSettings"]["Networks"].values()
        ip = next((network["IPAddress"] for network in networks if network.get("IPAddress")), None)
        address = f"{ip}:{port}" if ip else None
    exited = phase is Phase.EXITED
    return TaskState(
        index=index,
        phase=phase,
        exit_code=state["ExitCode"] if exited else None,
        out_of_memory=bool(state.get("OOMKilled")) and exited,
        started_at=_moment(state.get("StartedAt")),
        finished_at=_moment(state.get("FinishedAt")) if exited else None,
        address=address,
        message=state.get("Error") or None,
    )


def _moment(text: str | None) -> datetime | None:
    """Read the engine's times: RFC 3339 with nanoseconds, year 1 for never."""
    if not text or text.startswith("0001-"):
        return None
    head, _, rest = text.rstrip("Z").partition(".")
    fraction = (re.match(r"\d*", rest)[0] + "000000")[:6]  # type: ignore[index]
    return datetime.fromisoformat(f"{head}.{fraction}").replace(tzinfo=UTC)
