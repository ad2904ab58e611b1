"""From running servers, or addresses of any, to lanes: server x runtime x precision x protocol x what is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import httpx

from bundle.manifest import DEFAULT_TOLERANCE
from bundle.store import Bundle
from loadtest.benchmark import Lineup
from loadtest.ceiling import CeilingSpec
from loadtest.errors import TargetError
from loadtest.resources import listening_pids
from loadtest.targets import Target
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS, Endpoint, Protocol

Input = Literal["image", "tensor"]
_FORMATS: Final = {"onnxruntime": "onnx", "torchscript": "torchscript"}
_TIMEOUT_S: Final = 10.0
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Served:
    """A server of the three. `serving` are its settings, as JSON values; empty if it is somebody else's."""

    endpoint: Endpoint
    serving: Mapping[str, Any] = dataclass_field(default_factory=dict)
    pids: tuple[int, ...] = ()
    api_key: str | None = None

    def ceiling(self) -> CeilingSpec | None:
        """What the same runtime would run in process, on the same cores."""
        if not self.serving or self.serving["device"] != "cpu":
            return None
        known = ("runtime", "precision", "threads", "workers", "max_batch_size", "cores")
        return CeilingSpec(**{key: self.serving[key] for key in known})

    def lanes(self, bundle: Bundle, protocols: Sequence[Protocol], inputs: Sequence[Input]) -> list[Target]:
        """Every protocol that it speaks; and pixels if it takes them, over HTTP."""
        runtime, precision = (self.serving.get(key, "unknown") for key in ("runtime", "precision"))
        manifest = bundle.manifest
        known = [
            artefact.tolerance
            for artefact in manifest.artefacts
            if (artefact.format, artefact.precision) == (_FORMATS.get(runtime), precision)
        ]
        more: dict[str, Any] = {
            "runtime": runtime,
            "precision": precision,
            "tolerance": max([DEFAULT_TOLERANCE, *known]),
        }
        more["pids"] = self.pids
        lanes = []
        if "image" in inputs:
            spoken = [protocol for protocol in protocols if protocol in self.endpoint.protocols]
            lanes += [Target.of(self.endpoint, bundle, protocol=protocol, **more) for protocol in spoken]
        if "tensor" in inputs and "http" in protocols:
            version = bundle.manifest.version
            tensor = dialect_of(self.endpoint.server).tensor_model(bundle.manifest.model, version, self.serving)
            if tensor is not None:
                lanes.append(Target.of(self.endpoint, bundle, dialect="tensor", **vars(tensor), **more))
        return lanes


def lineup_of(
    served: Sequence[Served],
    bundle: Bundle,
    others: Sequence[Target] = (),
    protocols: Sequence[Protocol] = ("http",),
    inputs: Sequence[Input] = ("image",),
    server_cores: tuple[int, ...] = (),
    generator_cores: tuple[int, ...] = (),
) -> Lineup:
    """All lanes of the servers, and other targets.

    Raises:
        TargetError: there is none, or two have one name.
    """
    owned = [(lane, server) for server in served for lane in server.lanes(bundle, protocols, inputs)]
    lanes = named([*(lane for lane, _ in owned), *others])
    if not lanes:
        raise TargetError("no lane is left: no server here speaks what was asked for")
    by_name = {lane.lane: server for lane, (_, server) in zip(lanes, owned, strict=False)}
    # The ceiling decodes and computes; who gets decoded pixels does not.
    decoding = [lane.lane for lane in lanes if lane.input == "image" and lane.lane in by_name]
    ceilings = {name: spec for name in decoding if (spec := by_name[name].ceiling()) is not None}
    return Lineup(
        targets=tuple(lanes),
        bundle=bundle,
        serving={name: dict(server.serving) for name, server in by_name.items()},
        ceilings=ceilings,
        server_cores=server_cores,
        generator_cores=generator_cores,
        api_key=next((server.api_key for server in served if server.api_key), None),
    )


def only(lineup: Lineup, names: Sequence[str]) -> Lineup:
    """These lanes of it.

    Raises:
        TargetError: there is no lane of a name.
    """
    there = [lane.lane for lane in lineup.targets]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise TargetError(f"--lanes: there is no lane {', '.join(unknown)}; there are {', '.join(there)}")
    return replace(
        lineup,
        targets=tuple(lane for lane in lineup.targets if lane.lane in names),
        serving={name: serving for name, serving in lineup.serving.items() if name in names},
        ceilings={name: spec for name, spec in lineup.ceilings.items() if name in names},
    )


def parse_inputs(text: str) -> list[Input]:
    """`image`, `tensor`, or both with a comma.

    Raises:
        TargetError: something else.
    """
    names: list[Input] = [name for name in get_args(Input) if name in text.split(",")]
    if len(names) != len(text.split(",")):
        raise TargetError(f"--send {text!r}: there are image and tensor")
    return names


def named(lanes: Sequence[Target]) -> list[Target]:
    """The lanes with names that say in what they differ: `triton`, `triton torchscript`, `triton grpc`."""
    ours = [lane for lane in lanes if lane.server in SERVERS]
    runtimes = {lane.runtime for lane in ours}
    precisions = {lane.precision for lane in ours}
    result = []
    for lane in lanes:
        if lane.server not in SERVERS:  # named by its user
            result.append(lane)
            continue
        words: list[str] = [lane.server]
        words += [lane.runtime] if len(runtimes) > 1 else []
        words += [lane.precision] if len(precisions) > 1 else []
        words += ["grpc"] if lane.protocol == "grpc" else []
        words += ["tensor"] if lane.input == "tensor" else []
        result.append(lane.model_copy(update={"lane": " ".join(words)}))
    twice = {lane.lane for lane in result if [other.lane for other in result].count(lane.lane) > 1}
    if twice:
        raise TargetError(f"two targets are named {', '.join(sorted(twice))}")
    return result


def parse_target(entry: str, bundle: Bundle) -> Target:
    """`NAME=URL` of any server that serves the bundle's model.

    By the URL's path: `.../v2/models/MODEL` speaks the Open Inference Protocol (what it takes is read from its metadata);
    any other path (default `/predict`) takes an image as the body of a POST and answers as Trident or TorchServe do.

    Raises:
        TargetError: it is something else, or cannot be asked.
    """
    name, _, url = entry.partition("=")
    parts = urlsplit(url)
    if not name or parts.scheme not in ("http", "https") or not parts.hostname:
        raise TargetError(f"--target {entry!r} is not NAME=URL (mine=http://127.0.0.1:9000/predict)")
    base, manifest = f"{parts.scheme}://{parts.netloc}", bundle.manifest
    port = parts.port or (443 if parts.scheme == "https" else 80)
    content: dict[str, Any] = {
        "lane": name,
        "server": "another server",
        "url": base,
        "model": manifest.model,
        "version": manifest.version,
        "pids": listening_pids(port) if parts.hostname in _LOCAL else (),
    }
    before, is_protocol, model = parts.path.partition("/v2/models/")
    if not is_protocol:
        path = parts.path.rstrip("/") or "/predict"
        return Target(**content, dialect="image", path=path + (f"?{parts.query}" if parts.query else ""))
    path = f"{before}/v2/models/{model.removesuffix('/infer').rstrip('/')}"
    metadata = _metadata(f"{base}{path}", entry)
    try:
        (given,), output = metadata["inputs"], metadata["outputs"][0]
        datatype, input_name, output_name = given["datatype"], given["name"], output["name"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TargetError(f"--target {entry}: a model with one input is needed, not {str(metadata)[:200]}") from error
    if datatype == "UINT8":
        names = {"input_name": input_name, "output_name": output_name}
        return Target(**content, dialect="tensor", path=path, **names)
    if datatype == "BYTES":
        content |= {"url": f"{base}{before}", "model": path.rpartition("/v2/models/")[2]}
        return Target(**content, dialect="triton")
    raise TargetError(f"--target {entry}: it takes {datatype}; UINT8 pixels or BYTES of an image can be sent")


def _metadata(url: str, entry: str) -> dict[str, Any]:
    try:
        response = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False)
        response.raise_for_status()
        metadata: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise TargetError(f"--target {entry}: {url} gives no model metadata: {error}") from error
    return metadata
