"""Serving on the terminal: what `trident up`, `down`, `status`, `predict` and `verify` do and show."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from serving.bundle import Bundle, find_bundle, read_bundle
from serving.clients.connect import connect
from serving.errors import TridentError
from serving.server_plan import Endpoint, Protocol, ServerName
from serving.settings import ServingSettings, load_settings
from serving.stack.control import OnChange, current_stack, start_stack, stop_stack
from serving.stack.state import STACK, ServerState, StackState, log_path
from serving.verify import Check, verify

console = Console()

_COLORS: Final = {"ready": "green", "failed": "red", "stopped": "dim", "stopping": "yellow", "restarting": "yellow"}
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
        console.print(f"try [bold]curl -F file=@picture.png {url}/predict[/], or open {url}/docs", soft_wrap=True)
    console.print("stop them with [bold]trident down[/]")
    return state


def take_down(*, quiet: bool = False) -> None:
    """Stop the stack, and show it."""
    with showing_stack() as on_change:
        stopped = stop_stack(on_change=on_change)
    if not quiet:
        console.print("stopped" if stopped else "no stack is running")


def show_status(*, as_json: bool = False) -> bool:
    """The servers, each asked a real question. True if all of them gave the right answer."""
    state = current_stack()
    if state is None:
        console.print("no stack is running; `trident up` starts one")
        return False
    if as_json:
        console.print_json(state.model_dump_json())
        return state.ready
    bundles = [read_bundle(path, check=False) for path in state.bundles]
    table = _table("server", "phase", "answers", "address", "pid", "memory", "restarts", "")
    faults = {name: _canary_fault(server, bundles[0]) for name, server in state.servers.items()}
    for name, server in state.servers.items():
        table.add_row(
            name,
            Text(server.phase, _COLORS.get(server.phase, "")),
            Text(faults[name] or "right", "red" if faults[name] else "green"),
            server.endpoint.url if server.endpoint is not None else "-",
            str(server.pid or "-"),
            _memory(server.pid),
            str(server.restarts),
            server.message,
        )
    logs = log_path(STACK, "fastapi").parent
    console.print(f"models: {', '.join(bundle.name for bundle in bundles)}; logs: {logs}")
    console.print(table)
    return not any(faults.values())


def predict_pictures(
    pictures: Sequence[Path], endpoints: Sequence[Endpoint], bundle: Bundle, top_k: int, protocol: Protocol = "http"
) -> bool:
    """A table with a row per picture and server. True if every one was answered."""
    key = load_settings().client_key
    table = _table("picture", "server", "model", "answer", "ms")
    failed = False
    for picture in pictures:
        data = picture.read_bytes()
        for endpoint in endpoints:
            model, version = bundle.manifest.model, bundle.manifest.version
            with connect(endpoint, model, version, protocol=protocol, api_key=key) as client:
                try:
                    reply = client.ask(data, top_k)
                except TridentError as error:
                    failed = True
                    table.add_row(picture.name, endpoint.server, bundle.name, Text(error.message, "red"), "")
                    continue
            answer = reply.prediction
            classes = ", ".join(f"{entry.label} {entry.probability:.1%}" for entry in answer.predictions)
            answered_by = f"{answer.model}:{answer.version}"
            table.add_row(picture.name, endpoint.server, answered_by, classes, f"{reply.seconds * 1000:.1f}")
    console.print(table)
    return not failed


def verify_servers(endpoints: Sequence[Endpoint], bundle: Bundle) -> bool:
    """A table with a row per check and a column per server, and below it what failed. True if nothing did."""
    with console.status("verifying"):
        checks = [check for endpoint in endpoints for check in verify(endpoint, bundle)]
    servers = list(dict.fromkeys(check.server for check in checks))
    table = _table(bundle.name, *servers)
    for name in dict.fromkeys(check.name for check in checks):
        table.add_row(name, *(_cell(check) for check in checks if check.name == name))
    console.print(table)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        console.print(Text(f"{check.server}, {check.name}: {check.detail}", "red"))
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
    line = Text.assemble(f"{name:<11}", (server.phase, _COLORS[server.phase]), f"  {seconds:.1f} s")
    if server.phase == "ready" and server.endpoint is not None:
        line.append(f"  {server.endpoint.url}")
    return line


def _cell(check: Check) -> Text:
    return Text("ok", "green") if check.passed else Text("FAILED", "bold red")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="dim")


def _canary_fault(server: ServerState, bundle: Bundle) -> str:
    """'' if the server answers a golden picture rightly, else what is wrong."""
    if server.phase != "ready" or server.endpoint is None:
        return "-"
    try:
        model, version, key = bundle.manifest.model, bundle.manifest.version, load_settings().client_key
        with connect(server.endpoint, model, version, timeout_s=5, api_key=key) as client:
            top = client.predict(bundle.golden_pictures()[0][1]).top
    except TridentError as error:
        return error.message
    return "" if top.class_id == int(bundle.golden_probabilities()[0].argmax()) else f"wrong: {top.label}"


def _memory(pid: int | None) -> str:
    """Resident memory of a process and its descendants."""
    if pid is None:
        return "-"
    try:
        leader = psutil.Process(pid)
        total = sum(process.memory_info().rss for process in [leader, *leader.children(recursive=True)])
        return f"{total / 2**20:.0f} MiB"
    except psutil.Error:
        return "-"
