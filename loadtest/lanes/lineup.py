"""From running servers to lanes: server x runtime x precision x protocol x input."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from bundle.manifest import Manifest
from bundle.store import Bundle
from loadtest.errors import TargetError
from loadtest.lanes.ceiling import CeilingSpec
from loadtest.lanes.lane import Lane
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, Endpoint, Protocol

Input = Literal["image", "tensor"]
_FORMATS: Final = {"onnxruntime": "onnx", "torchscript": "torchscript", "openvino": "onnx"}


@dataclass(frozen=True)
class Lineup:
    """The lanes of a benchmark, and where they run.

    Args:
        serving: by lane, the server's settings, if they are known.
        ceilings: by lane, the ceiling's settings, if they are known.
        server_cores: empty: any core; `generator_cores` likewise.
    """

    lanes: tuple[Lane, ...]
    bundle: Bundle | None
    serving: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    ceilings: Mapping[str, CeilingSpec] = field(default_factory=dict)
    server_cores: tuple[int, ...] = ()
    generator_cores: tuple[int, ...] = ()
    api_key: str | None = None


@dataclass(frozen=True)
class ServerUnderTest:
    """One of our three servers. `serving`: its settings as JSON values; empty if they are unknown."""

    endpoint: Endpoint
    serving: Mapping[str, Any] = field(default_factory=dict)
    pids: tuple[int, ...] = ()
    api_key: str | None = None

    def ceiling(self) -> CeilingSpec | None:
        """The settings of the ceiling with the server's runtime, device and cores; None if they are unknown.

        On a GPU all cores decode: in each process, one thread per core in its share, less the model's.
        """
        if not self.serving:
            return None
        known = ("runtime", "precision", "threads", "workers", "max_batch_size", "cores", "device")
        spec = CeilingSpec(**{key: self.serving[key] for key in known})
        if spec.device == "cpu":
            return spec
        cores = len(spec.cores or os.sched_getaffinity(0))
        return spec.model_copy(update={"decoders": max(1, cores // spec.workers - 1)})

    def lanes(self, bundle: Bundle, protocols: Sequence[Protocol], inputs: Sequence[Input]) -> list[Lane]:
        """One lane for each protocol that the server speaks, and a tensor lane (HTTP) if it takes pixels."""
        runtime, precision = (self.serving.get(key, "unknown") for key in ("runtime", "precision"))
        more: dict[str, Any] = {
            "runtime": runtime,
            "backend": dialect_of(self.endpoint.server).backend(self.serving),
            "precision": precision,
            "tolerance": answer_tolerance(bundle.manifest, runtime, precision),
            "pids": self.pids,
        }
        lanes = []
        if "image" in inputs:
            spoken = [protocol for protocol in protocols if protocol in self.endpoint.protocols]
            lanes += [Lane.of(self.endpoint, bundle, protocol=protocol, **more) for protocol in spoken]
        if "tensor" in inputs and "http" in protocols:
            version = bundle.manifest.version
            tensor = dialect_of(self.endpoint.server).tensor_model(bundle.manifest.model, version, self.serving)
            if tensor is not None:
                lanes.append(Lane.of(self.endpoint, bundle, dialect="tensor", **vars(tensor), **more))
        return lanes


def answer_tolerance(manifest: Manifest, runtime: str = "unknown", precision: str = "unknown") -> float:
    """The manifest's tolerance for a runtime and precision; if they are unknown, the one of fp32."""
    known = [
        artefact.tolerance
        for artefact in manifest.artefacts
        if (artefact.format, artefact.precision) == (_FORMATS.get(runtime), precision)
    ]
    return max(known or [artefact.tolerance for artefact in manifest.artefacts if artefact.precision == "fp32"])


def lineup_of(
    servers: Sequence[ServerUnderTest],
    bundle: Bundle,
    others: Sequence[Lane] = (),
    protocols: Sequence[Protocol] = ("http",),
    inputs: Sequence[Input] = ("image",),
    server_cores: tuple[int, ...] = (),
    generator_cores: tuple[int, ...] = (),
) -> Lineup:
    """All lanes of our servers, and the `others`, of third-party servers.

    Raises:
        TargetError: there is no lane, or two lanes have the same name.
    """
    owned = [(lane, server) for server in servers for lane in server.lanes(bundle, protocols, inputs)]
    lanes = named([*(lane for lane, _ in owned), *others])
    if not lanes:
        raise TargetError("no lane left: none of the servers supports the requested protocols and inputs")
    by_name = {lane.name: server for lane, (_, server) in zip(lanes, owned, strict=False)}
    # The ceiling decodes; a tensor lane does not.
    decoding = [lane.name for lane in lanes if lane.input == "image" and lane.name in by_name]
    ceilings = {name: spec for name in decoding if (spec := by_name[name].ceiling()) is not None}
    return Lineup(
        lanes=tuple(lanes),
        bundle=bundle,
        serving={name: dict(server.serving) for name, server in by_name.items()},
        ceilings=ceilings,
        server_cores=server_cores,
        generator_cores=generator_cores,
        api_key=next((server.api_key for server in servers if server.api_key), None),
    )


def select_lanes(lineup: Lineup, names: Sequence[str]) -> Lineup:
    """A lineup of the lanes with these names. The backend, in brackets, may be left out.

    Raises:
        TargetError: there is no lane with one of the names.
    """
    known = {_without_backend(lane.name): lane.name for lane in lineup.lanes}
    unknown = [name for name in names if _without_backend(name) not in known]
    if unknown:
        raise TargetError(f"--lanes: no lane {', '.join(unknown)}; known lanes: {', '.join(known)}")
    names = [known[_without_backend(name)] for name in names]
    return replace(
        lineup,
        lanes=tuple(lane for lane in lineup.lanes if lane.name in names),
        serving={name: serving for name, serving in lineup.serving.items() if name in names},
        ceilings={name: spec for name, spec in lineup.ceilings.items() if name in names},
    )


def _without_backend(name: str) -> str:
    return re.sub(r" \(.*?\)", "", name)


def parse_inputs(text: str) -> list[Input]:
    """Parse `image`, `tensor`, or both separated by a comma.

    Raises:
        TargetError: another value.
    """
    names: list[Input] = [name for name in get_args(Input) if name in text.split(",")]
    if len(names) != len(text.split(",")):
        raise TargetError(f"--send {text!r}: allowed are image and tensor")
    return names


def named(lanes: Sequence[Lane]) -> list[Lane]:
    """Name the lanes by what differs between them: `triton`, `triton torchscript`, `triton grpc`, and by the backend where
    that must be known: `triton (python backend)`. Third parties' lanes keep their names.

    Raises:
        TargetError: two lanes have the same name.
    """
    ours = [lane for lane in lanes if lane.server in SERVERS]
    runtimes = {lane.runtime for lane in ours}
    precisions = {lane.precision for lane in ours}
    result = []
    for lane in lanes:
        if lane.server not in SERVERS:
            result.append(lane)
            continue
        words: list[str] = [lane.server, *([f"({lane.backend})"] if lane.backend else [])]
        words += [lane.runtime] if len(runtimes) > 1 else []
        words += [lane.precision] if len(precisions) > 1 else []
        words += ["grpc"] if lane.protocol == "grpc" else []
        words += ["tensor"] if lane.input == "tensor" else []
        result.append(lane.model_copy(update={"name": " ".join(words)}))
    names = [lane.name for lane in result]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TargetError(f"two lanes have the name {', '.join(sorted(twice))}")
    return result
