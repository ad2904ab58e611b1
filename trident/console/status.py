"""What `trident status` checks and shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil
from rich.text import Text

from bundle.errors import TridentError
from bundle.golden import Fault
from bundle.store import Bundle
from serving.clients.connect import connect
from serving.clients.endpoint import ServerName
from serving.clients.golden import check_examples
from serving.runtimes import artefact_for
from serving.servers.server import READ_BACK, EffectiveSettings, server_class
from serving.settings import ServingSettings
from serving.stack.control import current_stack
from serving.stack.endpoints import settings_in_force
from serving.stack.state import STACK, UP, ServerState, StackState, log_folder
from trident.console.output import console
from trident.console.stack import COLORS, plain_table

_TIMEOUT_S = 5.0


def show_status(settings: ServingSettings, *, as_json: bool = False) -> bool:
    """The servers, a golden request to each, and the settings that each reports. True if all are ready, answer rightly,
    and run with what was asked for.
    """
    state = current_stack()
    if state is None:
        console.print("no stack is running; `trident up` starts one")
        return False
    in_force = settings_in_force(settings, given=False)
    bundle = state.deployment().bundles[0]
    faults = {name: _golden_fault(server, bundle, in_force) for name, server in state.servers.items()}
    reported = [_read_back(name, state, in_force) for name, server in state.servers.items() if server.phase in UP]
    if as_json:
        found = {one.server: {**one.reported, **one.observations} for one in reported}
        messages = {name: fault.message if fault is not None else "" for name, fault in faults.items()}
        console.print_json(data=state.model_dump(mode="json") | {"faults": messages, "runs_with": found})
    else:
        _show_servers(state, faults)
        _show_settings(reported)
    return state.ready and all(one.agrees for one in reported) and not any(faults.values())


def _show_servers(state: StackState, faults: Mapping[ServerName, Fault | None]) -> None:
    health = plain_table("server", "phase", "answers", "address", "grpc")
    for column in health.columns[3:]:
        column.no_wrap = True
    processes = plain_table("server", "pid", "memory", "restarts", "repairs", "")
    for name, server in state.servers.items():
        fault, endpoint = faults[name], server.endpoint
        health.add_row(
            name,
            Text(server.phase, COLORS.get(server.phase, "")),
            Text("right", "green") if fault is None else Text(fault.message, "red"),
            endpoint.url if endpoint is not None else "-",
            (endpoint.grpc if endpoint is not None else None) or "-",
        )
        counts = (str(server.restarts), str(server.repairs))
        processes.add_row(name, str(server.pid or "-"), _memory(server.pid), *counts, server.message)
    console.print(f"models: {state.deployment().names}; logs: {log_folder(STACK)}")
    console.print(health)
    console.print(processes)


@dataclass(frozen=True)
class _Reported:
    """Settings that a server reports, those that were asked for, and the error if it could not be asked."""

    server: ServerName
    reported: EffectiveSettings
    expected: EffectiveSettings
    observations: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def agrees(self) -> bool:
        return self.error is None and self.reported.items() <= self.expected.items()


def _read_back(name: ServerName, state: StackState, settings: ServingSettings) -> _Reported:
    server = server_class(name)(settings, state.deployment(), STACK / name)
    try:
        return _Reported(name, server.effective_settings(), server.expected_settings(), server.observations())
    except (TridentError, OSError) as error:
        return _Reported(name, {}, {}, error=f"{name} does not report its settings: {error}")


def _show_settings(servers: Sequence[_Reported]) -> None:
    """The settings as the servers report them; red where they differ from what was asked for, `-` where not reported."""
    table = plain_table("effective settings", *(one.server for one in servers))
    for name in READ_BACK:
        cells = []
        for one in servers:
            differs = name in one.reported and one.reported[name] != one.expected[name]
            text = f"{one.reported[name]}, not {one.expected[name]}" if differs else str(one.reported.get(name, "-"))
            cells.append(Text(text, "red" if differs else ""))
        table.add_row(name, *cells)
    for name in dict.fromkeys(name for one in servers for name in one.observations):
        table.add_row(name, *(one.observations.get(name, "-") for one in servers))
    for one in servers:
        if one.error is not None:
            console.print(Text(one.error, "red"))
    console.print(table)


def _golden_fault(server: ServerState, bundle: Bundle, settings: ServingSettings) -> Fault | None:
    """The fault of one golden answer, or None."""
    if server.phase not in UP or server.endpoint is None:
        return Fault("no-answer", "-")
    manifest = bundle.manifest
    try:
        tolerance = artefact_for(bundle, settings.runtime, settings.precision).tolerance
        with connect(
            server.endpoint, manifest.model, manifest.version, timeout_s=_TIMEOUT_S, api_key=settings.client_key
        ) as client:
            result = check_examples(client, bundle.golden_examples()[:1], tolerance)
    except TridentError as error:
        return Fault("no-answer", error.message)
    return None if result.agrees else result.faults[0][1]


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
