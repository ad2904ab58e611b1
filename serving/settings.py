"""One set of settings for all servers. Values that differ by server are in the server's own table.

Precedence: command line, environment (`TRIDENT_MAX_BATCH_SIZE=16`, `TRIDENT_FASTAPI__WORKERS=2`), `trident.toml`,
default. An empty environment variable counts as unset. Unknown keys are rejected.

`main` functions call `load_settings` once; everything else receives the settings.
"""

import ipaddress
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from bundle.errors import DeploymentError
from bundle.manifest import Precision
from bundle.preprocess import MAX_IMAGE_PIXELS
from bundle.store import BUNDLES
from serving.cgroup import cpu_limit
from serving.clients.endpoint import ServerName
from serving.tuning import DEFAULTS, Tuning, resolve

SETTINGS_FILE: Final = Path("trident.toml")
ENV_PREFIX: Final = "TRIDENT_"
REPOSITORY: Final = Path(__file__).resolve().parents[1]

Port = Annotated[int, Field(ge=1, le=65535)]
RuntimeName = Literal["onnxruntime", "torchscript", "openvino"]
Device = Literal["cpu", "cuda", "tensorrt"]


class Ports(BaseModel):
    """TCP ports. TorchServe and Triton have several each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fastapi: Port = 8000
    torchserve: Port = 8080
    torchserve_management: Port = 8081
    torchserve_metrics: Port = 8082
    torchserve_grpc: Port = 7070
    torchserve_grpc_management: Port = 7071
    triton: Port = 8500
    triton_grpc: Port = 8501
    triton_metrics: Port = 8502


class ServingSettings(BaseSettings, Tuning):
    """The settings as given, for all servers. `of` resolves them for one server."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    bundles: Path = Field(default=BUNDLES, description="folder of bundles: <model>/<version>/")
    models: tuple[str, ...] = Field(
        default=(), description="MODEL or MODEL:VERSION; the first is the default model; empty: the newest bundle"
    )

    runtime: RuntimeName = Field(default="onnxruntime", description="what executes the model")
    precision: Precision = Field(
        default="fp32", description="which of the bundle's files is served; openvino computes fp32, bf16 and int8"
    )
    device: Device = Field(default="cpu", description="tensorrt: FastAPI and TorchServe only")
    cores: tuple[int, ...] = Field(
        default=(), description="numbers of the cores that local servers may use; empty: all"
    )
    queue_size: int = Field(default=256, ge=1, description="waiting requests; more are refused")
    request_timeout_s: float = Field(default=10.0, gt=0, le=600, description="deadline of an answer")
    read_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="deadline for a request to be complete (FastAPI)"
    )
    start_timeout_s: float = Field(default=120.0, gt=0, le=3600, description="deadline of a server to be ready")
    max_concurrent_requests: int = Field(default=1024, ge=1, description="requests in flight per process (FastAPI)")
    max_body_bytes: int = Field(default=10 * 2**20, ge=1024, le=2**30, description="larger requests are refused")
    max_image_pixels: int = Field(
        default=MAX_IMAGE_PIXELS, ge=1, le=MAX_IMAGE_PIXELS, description="larger images are refused"
    )

    api_keys: tuple[Annotated[SecretStr, Field(min_length=1)], ...] = Field(
        default=(), description="if set, requests need one of these keys; Triton accepts only the first"
    )
    api_keys_file: Path | None = Field(default=None, description="a file with one key per line, instead of api_keys")
    trust_network: bool = Field(
        default=False,
        description="serve without keys on an address that other machines can reach, for example behind a proxy",
    )

    triton_python: Path = Field(
        default=REPOSITORY / ".venv-triton/bin/python",
        description="the Python of Triton's environment, which has an older numpy",
    )

    triton_home: Path | None = Field(
        default=None,
        description="a Triton laid out as in the public image (/opt/tritonserver), whose native backends classify; empty: "
        "the one of triton_python, which has only the python backend",
    )

    host: str = Field(
        default="127.0.0.1", description="address to listen on; TorchServe's management always uses 127.0.0.1"
    )
    ports: Ports = Ports()

    fastapi: Tuning = Tuning()
    torchserve: Tuning = Tuning()
    triton: Tuning = Tuning()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The precedence: command line, environment, file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, SETTINGS_FILE)

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        file = values.get("api_keys_file")
        if not file or values.get("api_keys"):
            return values
        try:
            return values | {"api_keys": Path(file).read_text().split()}
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"api_keys_file cannot be read: {error}") from error

    def of(self, server: ServerName) -> "ServerSettings":
        """The settings of one server, without open values. Idempotent."""
        tuned = self._resolved(server)
        return ServerSettings.model_construct(**dict(self) | tuned | {server: Tuning(**tuned)})

    def resolved(self) -> "ServingSettings":
        """The same, with every value in the servers' tables resolved for the cores of this process."""
        return self.model_copy(update={server: Tuning(**self._resolved(server)) for server in DEFAULTS})

    def _resolved(self, server: ServerName) -> dict[str, Any]:
        return resolve(server, getattr(self, server), self, self.core_count, self.device)

    @property
    def core_count(self) -> int:
        """How many cores the servers may use: `cores`, limited to those of this process."""
        return min(available_cores(), len(self.cores) or available_cores())

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach the servers."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def client_key(self) -> str | None:
        """The key that Trident's own clients send."""
        return self.api_keys[0].get_secret_value() if self.api_keys else None

    def as_environment(self) -> dict[str, str]:
        """Environment variables from which `load_settings` restores these settings."""
        values = self.model_dump(mode="json")
        values["api_keys"] = [key.get_secret_value() for key in self.api_keys]
        return {
            f"{ENV_PREFIX}{key.upper()}": value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
            if value is not None
        }

    def child_environment(self) -> dict[str, str]:
        """This process's environment for a child that gets exactly these settings. (An inherited `TRIDENT_PORTS__TRITON`
        would win over `TRIDENT_PORTS`.)
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        return kept | self.as_environment()


class ServerSettings(ServingSettings):
    """The settings of one server, without open values. Only `ServingSettings.of` makes them."""

    workers: int
    threads: int
    max_batch_size: int
    queue_delay_ms: float


def load_settings(**given: Any) -> ServingSettings:
    """The settings in force. `given` are command-line values (None: not given); they win over the servers' tables too.

    Raises:
        DeploymentError: a key is unknown or a value is bad; the message names it.
    """
    known = ServingSettings.model_fields.keys()
    for variable in os.environ:
        key = variable.removeprefix(ENV_PREFIX).partition("__")[0].lower()
        if variable.startswith(ENV_PREFIX) and key not in known:
            raise DeploymentError(f"{variable} is not a Trident setting; the settings are {', '.join(sorted(known))}")
    try:
        given = {key: value for key, value in given.items() if value is not None}
        settings = ServingSettings(**given)
        unset = dict.fromkeys(given.keys() & Tuning.model_fields.keys())
        return settings.model_copy(
            update={
                server: getattr(settings, server).model_copy(update=unset) for server in DEFAULTS if server not in given
            }
        )
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise DeploymentError(f"bad settings ({SETTINGS_FILE}, environment or command line): {faults}") from error


def available_cores() -> int:
    """The number of cores that this process may use, by its CPU set and its container's limit (rounded up)."""
    cores, limit = len(os.sched_getaffinity(0)), cpu_limit()
    return cores if limit is None else max(1, min(cores, math.ceil(limit[0] / limit[1])))
