"""A bundle -> Triton's model repository: model_repository/'s templates rendered, weights copied."""

import shutil
from pathlib import Path
from string import Template
from typing import Final

from serving.bundle import MANIFEST, Bundle
from serving.errors import DeploymentError
from serving.settings import ServingSettings

TEMPLATES: Final = Path(__file__).resolve().parents[2] / "model_repository"
PARTS: Final = ("preprocess", "classifier", "postprocess")


def build_repository(bundle: Bundle, settings: ServingSettings, repository: Path) -> None:
    """Write the ensemble of `bundle` and its parts into the folder `repository`.

    Raises:
        DeploymentError: the settings ask for what Triton's classifier cannot do.
    """
    if settings.runtime != "onnxruntime":
        raise DeploymentError("the Triton deployment runs ONNX; set runtime = onnxruntime")
    manifest = bundle.manifest
    values = _template_values(bundle, settings)
    for part in ("ensemble", *PARTS):
        folder = repository / (manifest.model if part == "ensemble" else f"{manifest.model}_{part}")
        version = folder / str(manifest.version)
        version.mkdir(parents=True, exist_ok=True)
        template = Template((TEMPLATES / part / "config.pbtxt").read_text())
        (folder / "config.pbtxt").write_text(template.substitute(values))
        if (TEMPLATES / part / "model.py").is_file():
            shutil.copyfile(TEMPLATES / part / "model.py", version / "model.py")
            shutil.copyfile(bundle.path / MANIFEST, version / MANIFEST)
    weights = bundle.file(bundle.artefact("onnx", settings.precision))
    shutil.copyfile(weights, repository / f"{manifest.model}_classifier" / str(manifest.version) / "model.onnx")


def _template_values(bundle: Bundle, settings: ServingSettings) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "model": manifest.model,
        "version": manifest.version,
        "height": manifest.input.height,
        "width": manifest.input.width,
        "classes": manifest.output.classes,
        "max_batch_size": settings.max_batch_size,
        "queue_delay_us": round(settings.queue_delay_ms * 1000),
        "instances": settings.workers,
        "instance_kind": "KIND_CPU" if settings.device == "cpu" else "KIND_GPU",
        "threads": settings.threads_per_worker,
        # Decoding is single-threaded: as many decoders as there are cores in use.
        "decoders": settings.workers * settings.threads_per_worker,
        "max_image_pixels": settings.max_image_pixels,
    }
