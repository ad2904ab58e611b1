"""What `trident up` and `down` do and show."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from serving.clients.dialect import dialect_of
from serving.clients.endpoint import ServerName
from serving.deployment import Deployment
from serving.settings import ServingSettings
from serving.stack.control import OnChange, start_stack, stop_stack
from serving.stack.state import Phase, ServerState, StackState
from trident.console.output import console

COLORS: Final = {
    "ready": "green",
    "degraded": "yellow",
    "failed": "red",
    "stopped": "dim",
    "stopping": "yellow",
    "restarting": "yellow",
}
_SETTLED: Final[tuple[Phase, ...]] = ("ready", "failed", "stopped", "restarting")


def bring_up(settings: ServingSettings, servers: Sequence[ServerName], *, free_ports: bool = False) -> StackState:
    """Start the stack.

    Raises:
        DeploymentError, BundleError: it does not start. Nothing is left running.
    """
    deployment = Deployment.of(settings)
    console.print(f"starting {', '.join(servers)} with {deployment.names}")
    with showing_stack() as on_change:
        state = start_stack(settings, servers, deployment=deployment, choose_ports=free_ports, on_change=on_change)
    for endpoint in state.endpoints():
        hint = dialect_of(endpoint.server).hint(endpoint)
        if hint is not None:
            console.print(f"try {hint}", soft_wrap=True)
    console.print("stop them with [bold]trident down[/]")
    return state


def take_down(*, quiet: bool = False) -> None:
    """Stop the stack."""
    with showing_stack(settled=("stopped",)) as on_change:
        stopped = stop_stack(on_change=on_change)
    if not quiet:
        console.print("stopped" if stopped else "no stack is running")


@contextmanager
def showing_stack(settled: Sequence[Phase] = _SETTLED) -> Iterator[OnChange]:
    """Show the servers' phases: spinners on a terminal, and a line whenever a server reaches a `settled` phase."""
    started = time.monotonic()
    shown: dict[str, str] = {}
    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def on_change(state: StackState) -> None:
            for name, server in state.servers.items():
                if server.phase in settled and shown.get(name) != server.phase:
                    live.console.print(_settled_line(name, server, time.monotonic() - started))
                shown[name] = server.phase
            busy = [name for name, server in state.servers.items() if server.phase not in settled]
            live.update(Group(*(Spinner("dots", f"{name:<11}{state.servers[name].phase}") for name in busy)))

        yield on_change


def plain_table(*columns: str) -> Table:
    """A table without lines."""
    return Table(*columns, box=None, header_style="dim")


def _settled_line(name: str, server: ServerState, seconds: float) -> Text:
    line = Text.assemble(f"{name:<11}", (server.phase, COLORS[server.phase]), f"  {seconds:.1f} s")
    if server.phase == "ready" and server.endpoint is not None:
        line.append(f"  {server.endpoint.url}")
    return line
