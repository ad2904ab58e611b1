"""Output of `trident export`, `import` and `bundles`."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.table import Table

from bundle.store import BUNDLES, Bundle, list_bundles, read_bundle
from training.errors import TrainingError
from trident.console.output import console, loading, log

if TYPE_CHECKING:
    from bundle.manifest import Artefact, Manifest
    from training.export import ExportOptions


def export_options(precisions: str, edge: bool, max_accuracy_drop: float) -> "ExportOptions":
    """Parse `--precisions`; combine it with the other options of an export.

    Raises:
        TrainingError: a precision is unknown.
    """
    from bundle.manifest import Precision

    with loading("PyTorch"):
        from training.export import ExportOptions

    names = {name.strip() for name in precisions.split(",")} - {"", "fp32"}
    known: tuple[Precision, ...] = get_args(Precision)
    if "all" in names:
        names = set(known)
    if unknown := names - set(known):
        raise TrainingError(
            f"--precisions: unknown precision {', '.join(sorted(unknown))}; available are {', '.join(known)}, or all"
        )
    return ExportOptions(tuple(name for name in known if name in names), edge, max_accuracy_drop)


def export_run(
    checkpoint: Path,
    bundles: Path = BUNDLES,
    name: str | None = None,
    version: int | None = None,
    options: "ExportOptions | None" = None,
) -> Bundle:
    """Export a checkpoint, and show the files of the bundle.

    Raises:
        TrainingError, BundleError: see `training.export.export_checkpoint`.
    """
    with loading("PyTorch"):
        from training.export import export_checkpoint
    with console.status("exporting"):
        bundle = export_checkpoint(checkpoint, bundles, name, version, log, options)
    _show_bundle(bundle)
    return bundle


def import_run(name: str, bundles: Path, version: int | None, options: "ExportOptions | None" = None) -> Bundle:
    """Import published weights, and show the files of the bundle.

    Raises:
        TrainingError, BundleError: see `training.pretrained.import_model`.
    """
    with loading("PyTorch"):
        from training.pretrained import import_model
    with console.status(f"importing {name}"):
        bundle = import_model(name, bundles, version, log, options)
    _show_bundle(bundle)
    return bundle


def show_bundles(bundles: Path) -> None:
    """Show a table of the bundles."""
    table = Table("bundle", "classes", "input", "files", "origin", "test accuracy", box=None, header_style="dim")
    for model, version in list_bundles(bundles):
        manifest = read_bundle(bundles / model / str(version), check=False).manifest
        table.add_row(f"{model}:{version}", *_bundle_row(manifest))
    if table.row_count:
        console.print(table)
    else:
        console.print(
            f"no bundles in {bundles}; make one with `trident train` and `trident export`, or with `trident import`"
        )


def _bundle_row(manifest: "Manifest") -> list[str]:
    spec, origin = manifest.input, manifest.origin
    return [
        str(len(manifest.labels)),
        f"{spec.height}x{spec.width} {spec.resize}",
        ", ".join(f"{artefact.label} ({artefact.bytes / 2**20:.1f} MiB)" for artefact in manifest.artefacts),
        f"{origin.architecture}, {origin.dataset}",
        "-" if origin.test_accuracy is None else f"{origin.test_accuracy:.2%}",
    ]


def _show_bundle(bundle: Bundle) -> None:
    table = Table("file", "MiB", "ms per image", "speed-up", "accuracy drop", box=None, header_style="dim")
    for artefact in bundle.manifest.artefacts:
        table.add_row(*_artefact_row(artefact))
    console.print(table)
    console.print(f"bundle [bold]{bundle.name}[/]: {bundle.path}", soft_wrap=True)


def _artefact_row(artefact: "Artefact") -> list[str]:
    return [
        artefact.label,
        f"{artefact.bytes / 2**20:.2f}",
        "-" if artefact.latency_ms is None else f"{artefact.latency_ms:.2f}",
        "-" if artefact.speedup is None else f"{artefact.speedup:.2f}",
        "-" if artefact.accuracy_drop is None else f"{artefact.accuracy_drop:.2%}",
    ]
