"""Commands that make a model: train, sweep, export, import, bundles."""

from pathlib import Path
from typing import Annotated

import typer

from trident.options import BUNDLES, BundlesOption, DropOption, EdgeOption, PrecisionsOption, VersionOption

commands = typer.Typer()


@commands.command(rich_help_panel="Model")
def train(
    data: Annotated[
        str | None,
        typer.Option(help="digits (offline), cifar10, or a folder of your own images.  [default: digits]"),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="cifar10: where it lies. folder: DIR/<label>/*.jpg or DIR/{train,val,test}/<label>/*.jpg."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, simple_cnn, resnet, resnet9, efficientnet_lite0, or a torchvision classifier's name. *"
        ),
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--from-scratch", help="Start from ImageNet's weights. *")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; default: the data set's.")] = None,
    image_size: Annotated[int | None, typer.Option(help="The model's input.  [default: 32; folder: 224]")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many passes over the data. *")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, over all processes and accumulated parts. *")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd (Nesterov), adam or adamw. *")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest of the schedule. *")] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's.  [default: 0.9]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Not of biases and norms. *")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, step, cosine or onecycle. *")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Linear warm-up; OneCycle's rise. *")] = None,
    step_epochs: Annotated[int | None, typer.Option(help="Of schedule step: epochs between falls to a tenth.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the label given to all classes. *")] = None,
    dropout: Annotated[float | None, typer.Option(help="Of our own models.  [default: 0.25]")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Compute each step in so many parts, to save memory.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Keep a moving average of the weights; 0: none. *")] = None,
    freeze_epochs: Annotated[
        int | None, typer.Option(help="With --pretrained: train the head alone for so many epochs. *")
    ] = None,
    backbone_rate: Annotated[
        float | None, typer.Option(help="With --pretrained: the backbone's share of the learning rate.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower validation loss.  [default: 10]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same weights.  [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.  [default: auto]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16 or auto, which is mixed on CUDA.  [default: auto]")
    ] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--channels-first", help="Memory order.  [default: channels-last]")
    ] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--eager", help="By torch.compile.")] = None,
    loader_workers: Annotated[
        int | None, typer.Option(help="Processes that decode and augment; 0: the training process.  [default: 0]")
    ] = None,
    prefetch: Annotated[int | None, typer.Option(help="Batches that each of them holds ready.  [default: 2]")] = None,
    tune_loader: Annotated[bool, typer.Option("--tune-loader", help="Measure and take the fastest loader.")] = False,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="A checkpoint every so many steps too, not only after each epoch.")
    ] = None,
    keep_last: Annotated[int | None, typer.Option(help="Checkpoints to resume from that are kept.")] = None,
    track: Annotated[str | None, typer.Option(help="tensorboard, mlflow (with commas); JSON lines are always.")] = None,
    profile: Annotated[int, typer.Option(help="Profile so many steps: a trace, and where the time goes.")] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is kept; default: artifacts/runs/<name>/<time>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir, or the last one that did not end.")
    ] = False,
) -> None:
    """Train a classifier, and keep the best checkpoint. (* has a default per data set: see docs/training.md.)

    [dim]trident train[/]                                            handwritten digits
    [dim]trident train --data my_images[/]                         a folder per label
    [dim]trident train --resume[/]                                   after a crash or Ctrl-C
    [dim]torchrun --nproc-per-node 2 -m trident train ...[/]         several processes
    """
    given = {key.rstrip("_"): value for key, value in locals().items() if value is not None}
    for key in ("run_dir", "resume", "profile", "tune_loader"):
        given.pop(key, None)
    if track is not None:
        given["track"] = tuple(track.split(","))
    from trident.console.training import train_run

    train_run(given, run_dir, resume=resume, profile=profile, tune_loader=tune_loader)


@commands.command(rich_help_panel="Model", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sweep(
    context: typer.Context,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="FLAG=VALUE,VALUE", help="A flag of `trident train` and its values (repeatable)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every combination.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 2,
    sweep_dir: Annotated[
        Path | None, typer.Option(help="Where it is kept, and gone on with; default: artifacts/sweeps/<time>.")
    ] = None,
) -> None:
    """Train every combination of some settings, and compare. All other flags go to `trident train`.

    [dim]trident sweep --grid optimizer=adam,adamw --grid schedule=cosine,onecycle --seeds 3 --epochs 10[/]
    [dim]trident sweep --seeds 5[/]     how sure the default is
    """
    from trident.console.training import sweep_run

    sweep_run(grid or [], seeds, jobs, context.args, sweep_dir)


@commands.command(rich_help_panel="Model")
def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Default: the newest below artifacts/runs.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; default: the run's.")] = None,
    version: VersionOption = None,
    bundles: BundlesOption = BUNDLES,
    precisions: PrecisionsOption = "fp32",
    edge: EdgeOption = False,
    max_accuracy_drop: DropOption = 0.02,
) -> None:
    """Export a checkpoint as ONNX, TorchScript and .pt2, prove that they agree with PyTorch, and write the bundle.

    [dim]trident export --precisions int8,fp16[/]
    """
    from trident.console.training import export_options, export_run, newest_checkpoint

    wanted = export_options(precisions, edge, max_accuracy_drop)
    export_run(checkpoint or newest_checkpoint(), bundles, name, version, wanted)


@commands.command("import", rich_help_panel="Model")
def import_(
    name: Annotated[str, typer.Argument(help="efficientnet_lite0 (offline), or a torchvision classifier.")],
    version: VersionOption = None,
    bundles: BundlesOption = BUNDLES,
    precisions: PrecisionsOption = "fp32",
    edge: EdgeOption = False,
    max_accuracy_drop: DropOption = 0.02,
) -> None:
    """Make a bundle of published weights.

    [dim]trident import efficientnet_lite0[/]    ImageNet, 1000 labels, 224x224; needs no network
    [dim]trident import resnet50[/]              torchvision's weights, downloaded
    """
    from trident.console.training import export_options, import_run

    import_run(name, bundles, version, export_options(precisions, edge, max_accuracy_drop))


@commands.command("bundles", rich_help_panel="Model")
def list_bundles(bundles: BundlesOption = BUNDLES) -> None:
    """List the bundles."""
    from trident.console.training import show_bundles

    show_bundles(bundles)
