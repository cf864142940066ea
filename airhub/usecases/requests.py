"""What clients may ask for, field by field: the bodies of the HTTP contract, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from airhub.errors import FieldError, InvalidRequest

MAX_ID = 2**63 - 1


def _printable(value: str) -> str:
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029" for char in value):
        raise ValueError("must not contain control characters")
    if any(0xD800 <= ord(char) < 0xE000 for char in value):
        raise ValueError("must be valid Unicode text")
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _encodable(value: str) -> str:
    if "\0" in value or any(0xD800 <= ord(char) < 0xE000 for char in value):
        raise ValueError("must be valid Unicode text without NUL characters")
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Text = Annotated[str, AfterValidator(_encodable)]
Description = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_encodable)]
Path = Annotated[str, StringConstraints(max_length=4096)]
Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Count = Annotated[int, Field(ge=0, le=1024)]
Cpus = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1, le=2**62)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
Grace = Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)]
Command = Annotated[list[Text], Field(max_length=1000)]
Kind = Literal["notebook", "debug", "train", "inference"]


class Request(BaseModel):
    """A body: unknown fields are refused, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """Return the fields that the client sent."""
        return self.model_dump(exclude_unset=True)


class Limits(Request):
    """What anything that runs may ask for; null or absent means the operator's default."""

    gpus: Count = 0
    cpus: Cpus | None = None
    memory_bytes: Bytes | None = None


class CreateImage(Request):
    name: Name
    reference: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\s\x00-\x1f]+$")]
    kinds: Annotated[list[Kind], Field(min_length=1)] = ["notebook", "debug", "train", "inference"]
    gpu: bool = False
    description: Description = ""


class PatchImage(Request):
    name: Name | None = None
    reference: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\s\x00-\x1f]+$")] | None = None
    kinds: Annotated[list[Kind], Field(min_length=1)] | None = None
    gpu: bool | None = None
    description: Description | None = None


class CreateNotebook(Limits):
    image_id: Id
    name: Name | None = None
    description: Description = ""
    dataset: Path = ""
    code: Path = ""


class CreateDebug(CreateNotebook):
    name: Name


class PatchWorkspace(Request):
    name: Name | None = None
    description: Description | None = None


class CreateTemplate(Request):
    """``code_path`` with ``image_id``, or ``train_id`` with ``checkpoint`` in their place."""

    name: Name
    description: Description = ""
    image_id: Id | None = None
    code_path: Path | None = None
    model_path: Path = ""
    data_path: Path = ""
    command: Command | None = None
    parameters: dict[str, Any] | None = None
    gpus: Count = 0
    train_id: Id | None = None
    checkpoint: Path | None = None


class PatchTemplate(Request):
    name: Name | None = None
    description: Description | None = None
    image_id: Id | None = None
    code_path: Path | None = None
    model_path: Path | None = None
    data_path: Path | None = None
    command: Command | None = None
    parameters: dict[str, Any] | None = None
    gpus: Count | None = None


class CreateTrain(Limits):
    """``template_id``, or ``image_id`` and ``code_path``, which make a template on the way."""

    name: Name
    description: Description = ""
    template_id: Id | None = None
    template_version: Id | None = None
    image_id: Id | None = None
    code_path: Path | None = None
    command: Command | None = None
    gpus: Count | None = None  # type: ignore[assignment]
    dataset: Path = ""
    dist: bool = False
    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    processes: Annotated[int, Field(ge=1, le=1024)] | None = None
    parameters: dict[str, Any] = {}
    checkpoint_of: Id | None = None
    checkpoint: Path | None = None
    model_path: Path = ""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 0
    deadline_seconds: Seconds | None = None
    grace_seconds: Grace = 30


class PatchTrain(Request):
    name: Name | None = None
    description: Description | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None


class PauseTrain(Request):
    mode: Literal["freeze", "suspend"] | None = None
    grace_seconds: Grace | None = None


class StopTrain(Request):
    grace_seconds: Grace | None = None


class Nothing(Request):
    """An action without a body."""


class CreateInference(Limits):
    """``train_id`` with ``checkpoint``, or ``image_id`` and ``code_path``."""

    name: Name
    description: Description = ""
    train_id: Id | None = None
    checkpoint: Path | None = None
    image_id: Id | None = None
    code_path: Path | None = None
    model_path: Path = ""
    command: Command | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    idle_timeout_seconds: Seconds | None = None
    timeout_seconds: Seconds = 60
    sample: Any = None


class PatchInference(Request):
    name: Name | None = None
    description: Description | None = None
    checkpoint: Path | None = None
    replicas: Annotated[int, Field(ge=1, le=100)] | None = None
    idle_timeout_seconds: Seconds | None = None
    timeout_seconds: Seconds | None = None
    sample: Any = None


class Predict(Request):
    inputs: Any


class Quota(Request):
    """Upper bounds on what runs at once; null means no bound."""

    running_trains: Count | None = None
    gpus: Count | None = None
    cpus: Cpus | None = None
    memory_bytes: Bytes | None = None


R = TypeVar("R", bound=BaseModel)


def parse(model: type[R], body: Any) -> R:
    """Check a decoded JSON body; raise ``InvalidRequest`` that names each wrong field."""
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        return model.model_validate(body)
    except ValidationError as exc:
        errors = [FieldError(".".join(str(part) for part in error["loc"]) or "body", _sentence(error))
                  for error in exc.errors(include_url=False, include_context=True)]
        first = errors[0]
        raise InvalidRequest(f"{first.field}: {first.message}", errors) from exc


def _sentence(error: Any) -> str:
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        return "is not a known field"
    if kind == "missing":
        return "is required"
    return message.removeprefix("Value error, ")
