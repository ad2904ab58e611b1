"""A bundle -> Triton's model repository: the templates of model_repository/ rendered, the weights copied.

All versions of an ensemble share one configuration, so Triton's own version folders cannot pin an ensemble to one version
of its steps. So every bundle version has models of its own: `digits_v3` and its steps. `digits` is the ensemble of the
default version. Loading or unloading one version never changes the models of another.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Final

from bundle.atomic_file import atomic_write
from bundle.store import MANIFEST, Bundle
from serving.clients.triton import triton_model
from serving.runtimes import artefact_for
from serving.settings import RuntimeName, ServerSettings

TEMPLATES: Final = Path(__file__).resolve().parents[2] / "model_repository"
PARTS: Final = ("admission", "preprocess", "classifier", "postprocess")
SHARED_PREFIX: Final = "/dev/shm/trident_"  # noqa: S108 - POSIX shared memory, where the steps share the admission table


# Triton's name for a runtime's native backend, and what that backend calls the weights, inputs and outputs.
# https://github.com/triton-inference-server/pytorch_backend says what names libtorch needs: <name>__<index>.
_PLATFORM: Final[dict[RuntimeName, str]] = {"onnxruntime": "onnxruntime_onnx", "torchscript": "pytorch_libtorch"}
_WEIGHTS: Final[dict[RuntimeName, str]] = {"onnxruntime": "model.onnx", "torchscript": "model.pt"}


def model_names(bundle: Bundle) -> tuple[str, ...]:
    """The Triton models of a bundle, steps first; without the public name."""
    name = triton_model(bundle.manifest.model, bundle.manifest.version)
    return (*(f"{name}_{part}" for part in PARTS), name)


def admission_file(bundle: Bundle, shared_prefix: str = SHARED_PREFIX) -> Path:
    """The version's admission table."""
    return Path(f"{shared_prefix}{triton_model(bundle.manifest.model, bundle.manifest.version)}")


def build_repository(
    bundle: Bundle,
    settings: ServerSettings,
    repository: Path,
    *,
    is_default: bool = True,
    shared_prefix: str = SHARED_PREFIX,
) -> None:
    """Write the models of `bundle` into the folder `repository`; with `is_default`, also the public one.

    Raises:
        BundleError: the bundle has no artefact for the settings' runtime and precision.
    """
    values = _template_values(bundle, settings, shared_prefix)
    version = str(bundle.manifest.version)
    for part in PARTS:
        folder = repository / f"{values['name']}_{part}"
        (folder / version).mkdir(parents=True, exist_ok=True)
        _render(part, folder, values)
        if part != "classifier" or settings.triton_classifier == "python":
            shutil.copyfile(TEMPLATES / part / "model.py", folder / version / "model.py")
            shutil.copyfile(bundle.path / MANIFEST, folder / version / MANIFEST)
    _write_weights(bundle, settings, repository / f"{values['name']}_classifier" / version)
    _write_ensemble(repository, str(values["name"]), values)
    if is_default:
        write_default(bundle, settings, repository, shared_prefix=shared_prefix)


def write_default(
    bundle: Bundle, settings: ServerSettings, repository: Path, *, shared_prefix: str = SHARED_PREFIX
) -> None:
    """Let the public name stand for this version. Triton follows at the next load."""
    _write_ensemble(repository, bundle.manifest.model, _template_values(bundle, settings, shared_prefix))


def remove_models(names: Iterable[str], repository: Path) -> None:
    """Remove models from the repository."""
    for name in names:
        shutil.rmtree(repository / name, ignore_errors=True)


def _write_ensemble(repository: Path, name: str, values: dict[str, object]) -> None:
    folder = repository / name
    (folder / str(values["version"])).mkdir(
        parents=True, exist_ok=True
    )  # Triton needs the folder, though it stays empty
    _render("ensemble", folder, values | {"ensemble": name})


def _render(template: str, folder: Path, values: dict[str, object]) -> None:
    text = Template((TEMPLATES / template / "config.pbtxt").read_text()).substitute(values)
    atomic_write(folder / "config.pbtxt", text)


def _write_weights(bundle: Bundle, settings: ServerSettings, folder: Path) -> None:
    artefact = artefact_for(bundle, settings.runtime, settings.precision)
    if settings.triton_classifier == "python":
        shutil.copytree(bundle.path, folder / "bundle", dirs_exist_ok=True)
    else:
        shutil.copyfile(bundle.file(artefact), folder / _WEIGHTS[settings.runtime])


def _template_values(bundle: Bundle, settings: ServerSettings, shared_prefix: str) -> dict[str, object]:
    manifest = bundle.manifest
    name = triton_model(manifest.model, manifest.version)
    native = settings.triton_classifier == "native"
    indexed = native and settings.runtime == "torchscript"
    return {
        "name": name,
        "ensemble": name,
        "version": manifest.version,
        "height": manifest.input.height,
        "width": manifest.input.width,
        "classes": manifest.output.classes,
        "classifier_kind": f'platform: "{_PLATFORM[settings.runtime]}"' if native else 'backend: "python"',
        "classifier_input": "image__0" if indexed else "image",
        "classifier_output": "probabilities__0" if indexed else "probabilities",
        "classifier_parameters": "\n".join(_parameters(settings)),
        "max_batch_size": settings.max_batch_size,
        "queue_delay_us": round(settings.queue_delay_ms * 1000),
        "instances": settings.workers,
        "instance_kind": "KIND_CPU" if settings.device == "cpu" else "KIND_GPU",
        # Decoding is single-threaded: one decoder per core in use.
        "decoders": settings.workers * settings.threads,
        "max_body_bytes": settings.max_body_bytes,
        "max_image_pixels": settings.max_image_pixels,
        "queue_size": settings.queue_size,
        # Images that are being computed have a slot too.
        "slots": settings.queue_size + settings.workers * settings.max_batch_size,
        "request_timeout_s": settings.request_timeout_s,
        "admission_file": admission_file(bundle, shared_prefix),
    }


def _parameters(settings: ServerSettings) -> Iterable[str]:
    """The classifier's parameters, by its backend's names."""
    threads = str(settings.threads)
    if settings.triton_classifier == "python":
        values = {
            "settings": settings.model_dump_json(
                include={"runtime", "precision", "device", "threads", "max_batch_size"}
            )
        }
    elif settings.runtime == "torchscript":
        values = {"INTRA_OP_THREAD_COUNT": threads, "INTER_OP_THREAD_COUNT": "1"}
    else:
        values = {"intra_op_thread_count": threads, "inter_op_thread_count": "1"}
    for key, value in values.items():
        yield f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}'
