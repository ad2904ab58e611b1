"""What `trident predict`, `verify` and `drill` do and show."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.text import Text

from bundle.errors import TridentError
from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint, Protocol, ServerName
from serving.deployment import Deployment
from serving.settings import ServingSettings
from serving.stack.control import running_stack
from serving.verify.checks import Check, verify
from serving.verify.drill import CLIENTS, FaultResult, drill
from trident.console.output import console
from trident.console.stack import plain_table, showing_stack


def predict_images(
    images: Sequence[Path],
    endpoints: Sequence[Endpoint],
    bundle: Bundle,
    top_k: int,
    protocol: Protocol = "http",
    api_key: str | None = None,
) -> bool:
    """A table with a row per image and server. True if every request was answered."""
    table = plain_table("image", "server", "model", "answer", "ms")
    failed = False
    for image in images:
        data = image.read_bytes()
        for endpoint in endpoints:
            model, version = bundle.manifest.model, bundle.manifest.version
            with connect(endpoint, model, version, protocol=protocol, api_key=api_key) as client:
                try:
                    timed = client.ask(data, top_k)
                except TridentError as error:
                    failed = True
                    table.add_row(image.name, endpoint.server, bundle.name, Text(error.message, "red"), "")
                    continue
            answer = timed.prediction
            classes = ", ".join(f"{entry.label} {entry.probability:.1%}" for entry in answer.predictions)
            answered_by = f"{answer.model}:{answer.version}"
            table.add_row(image.name, endpoint.server, answered_by, classes, f"{timed.seconds * 1000:.1f}")
    console.print(table)
    return not failed


def verify_servers(
    endpoints: Sequence[Endpoint], bundle: Bundle, settings: ServingSettings, *, is_default: bool = True
) -> bool:
    """A table with a row per check and a column per lane; then the failures. True if there are none.

    Args:
        settings: what the servers run with.
        is_default: whether the bundle's version answers requests that name none.
    """
    checks: list[Check] = []
    for endpoint in endpoints:
        for protocol in endpoint.protocols:
            with console.status(f"verifying {endpoint.server} over {protocol}"):
                checks += verify(endpoint, protocol, bundle, settings, is_default=is_default)
    lanes = list(dict.fromkeys(check.lane for check in checks))
    table = plain_table(bundle.name, *lanes)
    table.columns[0].no_wrap = True
    for name in dict.fromkeys(check.name for check in checks):
        table.add_row(name, *(_cell(check) for check in checks if check.name == name))
    console.print(table)
    failed = [check for check in checks if check.passed is False]
    for check in failed:
        console.print(Text(f"{check.lane}, {check.name}: {check.detail}", "red"))
    if not failed:
        console.print(f"[green]all checks passed[/] in {len(lanes)} lanes (-: does not apply)")
    return not failed


def drill_servers(
    settings: ServingSettings, servers: Sequence[ServerName], deployment: Deployment, folder: Path
) -> bool:
    """Start a separate stack in `folder`, kill its processes one by one under load, and show the cost. True if no answer
    was wrong.

    Raises:
        DeploymentError: a server does not start, or does not recover.
    """
    console.print(f"starting {', '.join(servers)} with {deployment.names}, {settings.workers} workers each")
    results: list[FaultResult] = []
    with ExitStack() as stack:
        with showing_stack() as on_change:
            stack.enter_context(running_stack(settings, servers, folder, on_change, deployment=deployment))
        with console.status(f"killing processes under load ({CLIENTS} clients)"):
            for result in drill(folder, deployment.bundles[0], settings):
                console.print(f"killed {result.server}: {result.killed}", highlight=False)
                results.append(result)
    _show_drill(results)
    return not any(result.wrong for result in results)


def _show_drill(results: Sequence[FaultResult]) -> None:
    table = plain_table(
        *("server", "killed (SIGKILL)", "repaired by", "answers again after s", "complete after s"),
        *("requests since", "lost", "wrong"),
    )
    for result in results:
        times = (f"{result.recovered_s:.1f}", f"{result.complete_s:.1f}")
        counts = (str(result.requests), str(result.lost), str(result.wrong))
        table.add_row(result.server, result.killed, result.repaired_by, *times, *counts)
    console.print(table)
    for result in results:
        if result.first_loss is not None:
            line = Text(f"first loss after the kill of {result.killed}: {result.first_loss}", "dim")
            console.print(line, soft_wrap=True)


def _cell(check: Check) -> Text:
    if check.passed is None:
        return Text("-", "dim")
    return Text("ok", "green") if check.passed else Text("FAILED", "bold red")
