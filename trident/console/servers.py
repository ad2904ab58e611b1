"""Serving on the terminal: what `trident up`, `down`, `predict` and `verify` do and show."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bundle.errors import DeploymentError, TridentError
from bundle.store import Bundle, find_bundle, read_bundle
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint, Protocol, ServerName
from serving.clients.traffic import Record, Traffic
from serving.settings import ServingSettings, load_settings
from serving.stack.control import OnChange, current_stack, roll_out_bundle, running_stack, start_stack, stop_stack
from serving.stack.endpoints import settings_in_force
from serving.stack.state import ServerState, StackState
from serving.verify.checks import Check, verify
from serving.verify.drill import CLIENTS, drill

console = Console()

_BEFORE_AND_AFTER_S: Final = 1.0  # requests before and after a rollout
_PAUSE_S: Final = 0.02  # between a client's requests, so that they leave the cores to the rollout
COLORS: Final = {
    "ready": "green",
    "degraded": "yellow",
    "failed": "red",
    "stopped": "dim",
    "stopping": "yellow",
    "restarting": "yellow",
}
_SETTLED: Final = ("ready", "failed", "stopped", "restarting")


def bring_up(settings: ServingSettings, servers: Sequence[ServerName], *, free_ports: bool = False) -> StackState:
    """Start the stack, and show it.

    Raises:
        DeploymentError, BundleError: it does not start; nothing is left running.
    """
    bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
    settings = settings.model_copy(update={"models": tuple(str(bundle.path) for bundle in bundles)})
    console.print(f"starting {', '.join(servers)} with {', '.join(bundle.name for bundle in bundles)}")
    with showing_stack() as on_change:
        state = start_stack(settings, servers, choose_ports=free_ports, on_change=on_change)
    fastapi = state.servers.get("fastapi")
    if fastapi is not None and fastapi.endpoint is not None:
        url = fastapi.endpoint.url
        console.print(f"try [bold]curl -F file=@image.png {url}/predict[/], or open {url}/docs", soft_wrap=True)
    console.print("stop them with [bold]trident down[/]")
    return state


def take_down(*, quiet: bool = False) -> None:
    """Stop the stack, and show it."""
    with showing_stack() as on_change:
        stopped = stop_stack(on_change=on_change)
    if not quiet:
        console.print("stopped" if stopped else "no stack is running")


def deploy_bundle(bundle: Bundle, *, live: bool = False) -> bool:
    """Roll a bundle out, and show it; with `live`, under requests whose answers are checked. True if every server
    answers by it, and (with `live`) not one request failed or was answered wrongly.

    Raises:
        DeploymentError: no stack runs, or another rollout is under way.
    """
    state = current_stack()
    if state is None:
        raise DeploymentError("no stack is running; start it with `trident up`")
    served = [read_bundle(path, check=False) for path in state.bundles]
    names = ", ".join(one.name for one in served)
    console.print(f"rolling out {bundle.name} on {', '.join(state.servers)}, which serve {names}")
    settings = settings_in_force(given=False)
    old = [one for one in served if one.manifest.model == bundle.manifest.model] or [bundle]
    with ExitStack() as stack:
        traffic = {
            f"{endpoint.server} {protocol}": stack.enter_context(
                Traffic(endpoint, [*old, bundle], settings, protocol=protocol, pause_s=_PAUSE_S)
            )
            for endpoint in (state.endpoints() if live else [])
            for protocol in endpoint.protocols
        }
        if live:
            time.sleep(_BEFORE_AND_AFTER_S)
        with _showing_rollout() as on_change:
            rollout = roll_out_bundle(bundle, on_change=on_change)
        if live:
            time.sleep(_BEFORE_AND_AFTER_S)
    unharmed = _show_traffic({name: each.record for name, each in traffic.items()}) if live else True
    if rollout.phase == "refused":
        console.print(Text(f"refused: {rollout.message}", "red"))
        console.print(f"nothing was switched; {names} goes on answering")
        return False
    console.print(f"[green]{bundle.name} answers[/]; [bold]trident rollback[/] brings {old[-1].name} back")
    return unharmed


def _show_traffic(records: Mapping[str, Record]) -> bool:
    """A row per lane. True if nothing failed and nothing was wrong."""
    unchecked = any(record.unchecked for record in records.values())
    columns = ("lane", "requests", "failed", "wrong", *(["unchecked"] if unchecked else []))
    table = plain_table(*columns, "answers by version", "slowest ms")
    for name, record in records.items():
        versions = ", ".join(f"{version}: {count}" for version, count in sorted(record.versions.items()))
        counted = [record.requests, record.failed, record.wrong, *([record.unchecked] if unchecked else [])]
        table.add_row(name, *(str(len(some)) for some in counted), versions, f"{record.slowest_s * 1000:.0f}")
    console.print(table)
    faults = [
        f"{name}: {request.failed or request.wrong}"
        for name, record in records.items()
        for request in [*record.failed, *record.wrong]
    ]
    for fault in dict.fromkeys(faults):
        console.print(Text(fault, "red"))
    return not faults


@contextmanager
def _showing_rollout() -> Iterator[OnChange]:
    """Show the steps of a rollout while it goes on."""
    started = time.monotonic()
    shown: set[str] = set()
    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def on_change(state: StackState) -> None:
            assert state.rollout is not None
            for server, step in state.rollout.steps.items():
                line = f"{server:<11}{step}"
                if line not in shown:
                    live.console.print(f"{line:<24}{time.monotonic() - started:.1f} s", highlight=False)
                    shown.add(line)
            live.update(Spinner("dots", state.rollout.phase))

        yield on_change


def drill_servers(settings: ServingSettings, servers: Sequence[ServerName], bundle: Bundle, folder: Path) -> bool:
    """Start a stack of its own in `folder`, kill its processes one by one under load, and show what that cost. True if
    no answer was wrong.

    Raises:
        DeploymentError: a server does not start, or does not recover.
    """
    settings = settings.model_copy(update={"models": (str(bundle.path),)})
    console.print(f"starting {', '.join(servers)} with {bundle.name}, {settings.workers} workers each")
    drilled = []
    with ExitStack() as stack:
        with showing_stack() as on_change:
            stack.enter_context(running_stack(settings, servers, folder, on_change))
        with console.status(f"killing under load ({CLIENTS} clients)"):
            for one in drill(folder, bundle, settings):
                console.print(f"killed {one.fault.server}: {one.fault.victim}", highlight=False)
                drilled.append(one)
    table = plain_table(
        *("server", "kill -9 of", "repaired by", "answers again after s", "whole after s"),
        *("requests since", "lost", "wrong"),
    )
    for one in drilled:
        times = (f"{one.recovered_s:.1f}", f"{one.whole_s:.1f}")
        counts = (str(one.requests), str(one.lost), str(one.wrong))
        table.add_row(one.fault.server, one.fault.victim, one.repaired_by, *times, *counts)
    console.print(table)
    for one in drilled:
        if one.first_loss:
            console.print(Text(f"lost first with {one.fault.victim}: {one.first_loss}", "dim"), soft_wrap=True)
    return not any(one.wrong for one in drilled)


def predict_images(
    images: Sequence[Path], endpoints: Sequence[Endpoint], bundle: Bundle, top_k: int, protocol: Protocol = "http"
) -> bool:
    """A table with a row per image and server. True if every one was answered."""
    key = load_settings().client_key
    table = plain_table("image", "server", "model", "answer", "ms")
    failed = False
    for image in images:
        data = image.read_bytes()
        for endpoint in endpoints:
            model, version = bundle.manifest.model, bundle.manifest.version
            with connect(endpoint, model, version, protocol=protocol, api_key=key) as client:
                try:
                    reply = client.ask(data, top_k)
                except TridentError as error:
                    failed = True
                    table.add_row(image.name, endpoint.server, bundle.name, Text(error.message, "red"), "")
                    continue
            answer = reply.prediction
            classes = ", ".join(f"{entry.label} {entry.probability:.1%}" for entry in answer.predictions)
            answered_by = f"{answer.model}:{answer.version}"
            table.add_row(image.name, endpoint.server, answered_by, classes, f"{reply.seconds * 1000:.1f}")
    console.print(table)
    return not failed


def verify_servers(
    endpoints: Sequence[Endpoint],
    bundle: Bundle,
    settings: ServingSettings | None = None,
    *,
    is_default: bool = True,
) -> bool:
    """A table with a row per check and a column per lane, and below it what failed. True if nothing did.

    Args:
        settings: what the servers run with, where that is known.
        is_default: the bundle's version answers when none is asked for.
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
    return not failed


@contextmanager
def showing_stack() -> Iterator[OnChange]:
    """Show the servers' phases while they change: spinners on a terminal, and a line whenever one settles."""
    started = time.monotonic()
    shown: dict[str, str] = {}
    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def on_change(state: StackState) -> None:
            for name, server in state.servers.items():
                if server.phase in _SETTLED and shown.get(name) != server.phase:
                    live.console.print(_settled_line(name, server, time.monotonic() - started))
                shown[name] = server.phase
            busy = [name for name, server in state.servers.items() if server.phase not in _SETTLED]
            live.update(Group(*(Spinner("dots", f"{name:<11}{state.servers[name].phase}") for name in busy)))

        yield on_change


def _settled_line(name: str, server: ServerState, seconds: float) -> Text:
    line = Text.assemble(f"{name:<11}", (server.phase, COLORS[server.phase]), f"  {seconds:.1f} s")
    if server.phase == "ready" and server.endpoint is not None:
        line.append(f"  {server.endpoint.url}")
    return line


def _cell(check: Check) -> Text:
    if check.passed is None:
        return Text("-", "dim")
    return Text("ok", "green") if check.passed else Text("FAILED", "bold red")


def plain_table(*columns: str) -> Table:
    """A table without lines."""
    return Table(*columns, box=None, header_style="dim")
