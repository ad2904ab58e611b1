"""What `trident status` asks and shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
from rich.text import Text

from bundle.errors import TridentError
from bundle.store import Bundle, read_bundle
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint, ServerName
from serving.settings import load_settings
from serving.stack.control import current_stack
from serving.stack.endpoints import settings_in_force
from serving.stack.readback import SHOWN, read_back, wanted_settings
from serving.stack.state import STACK, UP, ServerState, StackState, log_path
from trident.console.servers import COLORS, console, plain_table


def show_status(*, as_json: bool = False) -> bool:
    """The servers, each asked a real question and for its settings. True if all are ready, answered rightly, and run with
    what was asked for.
    """
    state = current_stack()
    if state is None:
        console.print("no stack is running; `trident up` starts one")
        return False
    bundles = [read_bundle(path, check=False) for path in state.bundles]
    faults = {name: _canary_fault(server, bundles[0]) for name, server in state.servers.items()}
    said = [_read_back(endpoint, bundles[-1]) for endpoint in state.endpoints()]
    if as_json:
        found = {one.server: dict(one.said) for one in said}
        console.print_json(data=state.model_dump(mode="json") | {"faults": faults, "runs_with": found})
    else:
        _show_servers(state, bundles, faults)
        _show_settings(said)
    return state.ready and all(one.agrees for one in said) and not any(faults.values())


def _show_servers(state: StackState, bundles: Sequence[Bundle], faults: Mapping[ServerName, str]) -> None:
    table = plain_table("server", "phase", "answers", "address", "grpc", "pid", "memory", "restarts", "mended", "")
    for name, server in state.servers.items():
        table.add_row(
            name,
            Text(server.phase, COLORS.get(server.phase, "")),
            Text(faults[name] or "right", "red" if faults[name] else "green"),
            server.endpoint.url if server.endpoint is not None else "-",
            (server.endpoint.grpc if server.endpoint is not None else None) or "-",
            str(server.pid or "-"),
            _memory(server.pid),
            str(server.restarts),
            str(server.mended),
            server.message,
        )
    logs = log_path(STACK, "fastapi").parent
    console.print(f"models: {', '.join(bundle.name for bundle in bundles)}; logs: {logs}")
    console.print(table)


@dataclass(frozen=True)
class _Settings:
    """What a server says that it runs with, what it was asked for, and why it does not tell."""

    server: ServerName
    said: Mapping[str, object]
    wanted: Mapping[str, object]
    fault: str = ""

    @property
    def agrees(self) -> bool:
        return not self.fault and self.said.items() <= self.wanted.items()


def _read_back(endpoint: Endpoint, bundle: Bundle) -> _Settings:
    settings = settings_in_force(given=False)
    try:
        said = read_back(endpoint, bundle, settings)
    except (TridentError, OSError) as error:
        return _Settings(endpoint.server, {}, {}, f"{endpoint.server} does not tell its settings: {error}")
    return _Settings(endpoint.server, said, wanted_settings(endpoint, settings))


def _show_settings(servers: Sequence[_Settings]) -> None:
    """The settings as the servers say them; red where that is not what was asked for, `-` where they do not tell."""
    table = plain_table("what they run with", *(one.server for one in servers))
    for name in SHOWN:
        cells = []
        for one in servers:
            differs = name in one.said and one.said[name] != one.wanted[name]
            text = f"{one.said[name]}, not {one.wanted[name]}" if differs else str(one.said.get(name, "-"))
            cells.append(Text(text, "red" if differs else ""))
        table.add_row(name, *cells)
    for one in servers:
        if one.fault:
            console.print(Text(one.fault, "red"))
    console.print(table)


def _canary_fault(server: ServerState, bundle: Bundle) -> str:
    """'' if the server answers a golden image rightly, else what is wrong."""
    if server.phase not in UP or server.endpoint is None:
        return "-"
    try:
        model, version, key = bundle.manifest.model, bundle.manifest.version, load_settings().client_key
        with connect(server.endpoint, model, version, timeout_s=5, api_key=key) as client:
            top = client.predict(bundle.golden_inputs()[0][1]).top
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
