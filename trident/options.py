"""Flags that several commands share."""

from pathlib import Path
from typing import Annotated, Final

import typer

BUNDLES: Final = Path("artifacts/bundles")

BundlesOption = Annotated[Path, typer.Option("--bundles", help="Folder of the bundles.")]
VersionOption = Annotated[int | None, typer.Option(min=1, help="Version of the bundle; default: the next one.")]
PrecisionsOption = Annotated[
    str, typer.Option(help="fp16, bf16, int8, int8-dynamic (separated by commas), or all; always includes fp32.")
]
EdgeOption = Annotated[bool, typer.Option("--edge", help="Also write onnxruntime's mobile format (.ort).")]
DropOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Largest accuracy drop of a lower precision (imported weights: drop in top-1 agreement)."
    ),
]
SERVERS_HELP: Final = "fastapi, torchserve, triton (separated by commas), or all."
ServersOption = Annotated[str, typer.Option("--servers", help=SERVERS_HELP)]
LiveOption = Annotated[
    bool,
    typer.Option("--live", help="Send requests during the rollout, and show those that fail or are answered wrongly."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="MODEL, MODEL:VERSION or a bundle's folder; default: what is served, else the newest bundle."
    ),
]
UrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        metavar="SERVER=URL[,GRPC[,METRICS[,CONTAINER]]]",
        envvar="SERVER_URLS",
        help="Use this address instead of the local stack (repeatable; separated by spaces in the environment). GRPC is "
        "HOST:PORT, METRICS and CONTAINER are the URLs of the server's and its container's metrics.",
    ),
]
