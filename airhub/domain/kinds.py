"""How a record becomes a ``WorkloadSpec``: command, environment and limits of each kind. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from airhub.domain.models import Inference, Train
from airhub.domain.workload import Mount, WorkloadSpec

CODE = "/data/code"
DATASET = "/data/dataset"
MODEL = "/data/model/cur_model.pth"
OUTPUT = "/data/output"
REPORT_TOKEN = "/data/report/token"
SERVE = "/data/airhub/serve"
SERVE_KEYS = "/data/airhub/keys"
SERVE_PORT = 8080
RENDEZVOUS_PORT = 29400

ENTRY_POINTS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("train.py", ("python", "train.py")),
    ("main.py", ("python", "main.py")),
    ("run.sh", ("sh", "run.sh")),
)
"""What is run when neither template nor ``template.json`` names a command: the first that exists."""


def find_command(wanted: Sequence[str], manifest: Mapping[str, Any], files: Sequence[str]) -> tuple[str, ...]:
    """Return the command of a template; empty when there is nothing to run."""
    if wanted:
        return tuple(wanted)
    if manifest.get("command"):
        return tuple(manifest["command"])
    return next((command for name, command in ENTRY_POINTS if name in files), ())


def parameter_arguments(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return parameters as ``--name value`` arguments; lists and objects as JSON, booleans as true and false."""
    arguments: list[str] = []
    for name, value in parameters.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        arguments += [f"--{name}", text]
    return tuple(arguments)


def training_environment(
    train_id: int | str, attempt: int, dataset: bool, model: bool, resume: str | None
) -> dict[str, str]:
    """Return the variables that training code finds, in a job or in a debug."""
    return {
        "AIRHUB_CODE": CODE,
        "AIRHUB_DATASET": DATASET if dataset else "",
        "AIRHUB_MODEL": MODEL if model else "",
        "AIRHUB_OUTPUT": OUTPUT,
        "AIRHUB_TRAIN_ID": str(train_id),
        "AIRHUB_ATTEMPT": str(attempt),
        "AIRHUB_RESUME": f"{OUTPUT}/{resume}" if resume else "",
        "PYTHONUNBUFFERED": "1",
    }


def train_command(train: Train) -> tuple[str, ...]:
    """Return the command line of a job with its parameters, under ``torchrun`` when it is distributed.

    The node's rank and the address of node 0 come by torchrun's own ``PET_`` variables.
    """
    command = (*train.command, *parameter_arguments(train.parameters))
    if not train.dist or not _is_python(train.command):
        return command
    launcher = (train.command[0], "-m", "torch.distributed.run", "--nnodes", str(train.nodes))
    return (*launcher, "--nproc-per-node", str(train.processes), *command[1:])


def train_spec(train: Train, mounts: Sequence[Mount], report_url: str, labels: Mapping[str, str]) -> WorkloadSpec:
    """Return the workload of a job's current attempt."""
    targets = {mount.target for mount in mounts}
    env = training_environment(train.id, train.attempt, DATASET in targets, MODEL in targets, train.resume)
    if REPORT_TOKEN in targets:
        env["KUBEFLOW_TRAINER_SERVER_URL"] = report_url
        env["KUBEFLOW_TRAINER_SERVER_TOKEN"] = REPORT_TOKEN
    if train.gpus == 0:
        env["NVIDIA_VISIBLE_DEVICES"] = "void"
    return WorkloadSpec(
        name=train.workload,
        owner=train.owner,
        image=train.image_reference,
        command=train_command(train),
        env=env,
        task_env=tuple(_rank_variables(train, rank) for rank in range(train.nodes)) if train.dist else (),
        mounts=tuple(mounts),
        working_dir=CODE,
        tasks=train.nodes,
        cpus=train.cpus,
        memory_bytes=train.memory_bytes,
        gpu_ids=_share(train.gpu_ids, train.gpus, train.nodes),
        private_network=train.nodes > 1,
        labels=labels,
    )


def inference_spec(
    inference: Inference, mounts: Sequence[Mount], prefix: str, labels: Mapping[str, str]
) -> WorkloadSpec:
    """Return the workload of a model's server: AirHub's own, before the user's code or the user's server."""
    targets = {mount.target for mount in mounts}
    env = {
        "AIRHUB_CODE": CODE,
        "AIRHUB_MODEL": MODEL if MODEL in targets else "",
        "AIRHUB_INFERENCE_ID": str(inference.id),
        "AIRHUB_INFERENCE_NAME": inference.name,
        "AIRHUB_SERVE_PORT": str(SERVE_PORT),
        "AIRHUB_SERVE_PREFIXES": prefix,
        "AIRHUB_SERVE_KEYS_FILE": f"{SERVE_KEYS}/keys.json",
        "AIRHUB_SERVE_SECRET": inference.secret,
        "AIRHUB_SERVE_TIMEOUT_SECONDS": f"{inference.timeout_seconds:g}",
        "PYTHONUNBUFFERED": "1",
    }
    if inference.command:
        env["AIRHUB_SERVE_COMMAND"] = json.dumps(list(inference.command))
        env["AIRHUB_SERVE_UPSTREAM_PORT"] = str(inference.port)
    if inference.gpus == 0:
        env["NVIDIA_VISIBLE_DEVICES"] = "void"
    return WorkloadSpec(
        name=inference.workload,
        owner=inference.owner,
        image=inference.image_reference,
        command=("python", SERVE),
        env=env,
        mounts=tuple(mounts),
        working_dir=CODE,
        tasks=inference.replicas,
        cpus=inference.cpus,
        memory_bytes=inference.memory_bytes,
        gpu_ids=_share(inference.gpu_ids, inference.gpus, inference.replicas),
        port=SERVE_PORT,
        restartable=True,
        labels=labels,
    )


def _is_python(command: Sequence[str]) -> bool:
    return len(command) > 1 and command[0].rsplit("/", 1)[-1].startswith("python") and not command[1].startswith("-c")


def _rank_variables(train: Train, rank: int) -> dict[str, str]:
    variables = {
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "{task:0}",
        "PET_MASTER_PORT": str(RENDEZVOUS_PORT),
    }
    if not _is_python(train.command):
        variables |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(train.nodes),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(rank),
            "MASTER_ADDR": "{task:0}",
            "MASTER_PORT": str(RENDEZVOUS_PORT),
        }
    return variables


def _share(gpu_ids: Sequence[str], each: int, tasks: int) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(gpu_ids[index * each : (index + 1) * each]) for index in range(tasks)) if each else ()
