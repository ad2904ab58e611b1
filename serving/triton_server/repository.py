"""A bundle -> Triton's model repository: the templates of model_repository/ rendered, the bundle copied.

Every bundle version has models of its own: `digits_v3_image` takes images, `digits_v3_classifier` pixels. The ensemble
`digits_v3` is the public name of the former, and `digits` that of the default version's. Loading or unloading one version
never changes the models of another.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Final, NamedTuple

from bundle.atomic_file import atomic_write
from bundle.store import Bundle
from serving.clients.triton import triton_model
from serving.runtimes import artefact_for
from serving.settings import RuntimeName, ServerSettings
from serving.triton_server.parameters import BUNDLE_FOLDER, NATIVE, SETTINGS

PARTS: Final = ("classifier", "image")
TEMPLATES: Final = Path(__file__).resolve().parents[2] / "model_repository"
_CONFIG: Final = "config.pbtxt"


class NativeBackend(NamedTuple):
    """A runtime's backend in Triton, and what it calls the weights and tensors."""

    folder: str
    platform: str
    weights: str
    input: str
    output: str


# https://github.com/triton-inference-server/pytorch_backend says what names libtorch needs: <name>__<index>.
_NATIVE: Final[dict[RuntimeName, NativeBackend]] = {
    "onnxruntime": NativeBackend("onnxruntime", "onnxruntime_onnx", "model.onnx", "image", "probabilities"),
    "torchscript": NativeBackend("pytorch", "pytorch_libtorch", "model.pt", "image__0", "probabilities__0"),
}


def native_backend(settings: ServerSettings) -> NativeBackend | None:
    """The native backend for the runtime; None if Triton has none. The Triton of the wheel has only the python backend."""
    backend = _NATIVE.get(settings.runtime)
    if settings.triton_home is None or backend is None:
        return None
    return backend if (settings.triton_home / "backends" / backend.folder).is_dir() else None


def model_names(bundle: Bundle) -> tuple[str, ...]:
    """The Triton models of a bundle, in the order in which they are loaded; without the model's public name."""
    name = triton_model(bundle.manifest.model, bundle.manifest.version)
    return (*(f"{name}_{part}" for part in PARTS), name)


def build_repository(bundle: Bundle, settings: ServerSettings, repository: Path, *, is_default: bool = True) -> None:
    """Write the models of `bundle` into the folder `repository`; with `is_default`, also the one without a version.

    Raises:
        BundleError: the bundle has no artefact for the settings' runtime and precision.
    """
    artefact = artefact_for(bundle, settings.runtime, settings.precision)
    native = native_backend(settings)
    values = _template_values(bundle, settings)
    for part in PARTS:
        folder = _render(part, repository / f"{values['name']}_{part}", values)
        if part == "classifier" and native is not None:
            shutil.copyfile(bundle.file(artefact), folder / native.weights)
        else:
            shutil.copyfile(TEMPLATES / part / "model.py", folder / "model.py")
            shutil.copytree(bundle.path, folder / BUNDLE_FOLDER, dirs_exist_ok=True)
    _render("ensemble", repository / str(values["name"]), values)
    if is_default:
        write_default(bundle, settings, repository)


def write_default(bundle: Bundle, settings: ServerSettings, repository: Path) -> None:
    """Let the public name stand for this version. Triton follows at the next load."""
    model = bundle.manifest.model
    _render("ensemble", repository / model, _template_values(bundle, settings) | {"ensemble": model})


def remove_models(names: Iterable[str], repository: Path) -> None:
    """Remove models from the repository."""
    for name in names:
        shutil.rmtree(repository / name, ignore_errors=True)


def _render(template: str, folder: Path, values: dict[str, object]) -> Path:
    """Write a model's configuration. Returns the folder of its version, which Triton needs even if it is empty."""
    versioned = folder / str(values["version"])
    versioned.mkdir(parents=True, exist_ok=True)
    text = Template((TEMPLATES / template / _CONFIG).read_text()).substitute(values)
    atomic_write(folder / _CONFIG, text)
    return versioned


def _template_values(bundle: Bundle, settings: ServerSettings) -> dict[str, object]:
    manifest = bundle.manifest
    native = native_backend(settings)
    kind = "KIND_CPU" if settings.device == "cpu" else "KIND_GPU"
    delay_us = round(settings.queue_delay_ms * 1000)
    classifier, _, name = model_names(bundle)
    input_name, output_name = (native.input, native.output) if native else ("image", "probabilities")
    ours = {SETTINGS: _settings_json(settings)}
    called = {"model": classifier, "version": manifest.version, "input_name": input_name, "output_name": output_name}
    return {
        "name": name,
        "ensemble": name,
        "model": manifest.model,
        "version": manifest.version,
        "height": manifest.input.height,
        "width": manifest.input.width,
        "classes": manifest.output.classes,
        "classifier_kind": f'platform: "{native.platform}"' if native else 'backend: "python"',
        "classifier_input": input_name,
        "classifier_output": output_name,
        "classifier_parameters": _parameters(_native_parameters(settings) if native else ours),
        "max_batch_size": settings.max_batch_size,
        "queue_delay_us": delay_us,
        "instances": settings.workers,
        "instance_kind": kind,
        # Before a native classifier they only decode, which is single-threaded: one per core in use.
        "image_instances": settings.workers * settings.threads if native else settings.workers,
        "image_kind": "KIND_CPU" if native else kind,
        "image_delay_us": 0 if native else delay_us,
        "image_parameters": _parameters(ours | ({NATIVE: json.dumps(called)} if native else {})),
    }


def _settings_json(settings: ServerSettings) -> str:
    return settings.model_dump_json(
        include={
            *("runtime", "precision", "device", "workers", "threads", "max_batch_size", "queue_size"),
            *("request_timeout_s", "max_body_bytes", "max_image_pixels"),
        }
    )


def _native_parameters(settings: ServerSettings) -> dict[str, str]:
    """The native classifier's parameters, by its backend's names."""
    threads = str(settings.threads)
    if settings.runtime == "torchscript":
        return {"INTRA_OP_THREAD_COUNT": threads, "INTER_OP_THREAD_COUNT": "1"}
    return {"intra_op_thread_count": threads, "inter_op_thread_count": "1"}


def _parameters(values: dict[str, str]) -> str:
    return "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}' for key, value in values.items()
    )
