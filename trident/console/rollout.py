"""What `trident deploy` and `rollback` do and show."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from bundle.store import Bundle
from serving.clients.traffic import Traffic, TrafficRecord
from serving.runtimes import artefact_for
from serving.settings import ServingSettings
from serving.stack.control import OnChange, roll_out_bundle
from serving.stack.endpoints import running_state, settings_in_force
from serving.stack.state import StackState
from trident.console.output import console
from trident.console.stack import plain_table

_BEFORE_AND_AFTER_S: Final = 1.0  # requests before and after a rollout
_PAUSE_S: Final = 0.02  # between a client's requests, so that they leave the cores to the rollout


def deploy_bundle(bundle: Bundle, settings: ServingSettings, *, live: bool = False) -> bool:
    """Roll a bundle out; with `live`, under requests whose answers are checked. True if every server answers by it, and
    (with `live`) no request failed or was answered wrongly.

    Raises:
        DeploymentError: no stack runs, or another rollout is in progress.
    """
    state = running_state()
    served = state.deployment()
    console.print(f"rolling out {bundle.name} on {', '.join(state.servers)}, which serve {served.names}")
    old = served.versions(bundle.manifest.model) or [bundle]
    with ExitStack() as stack:
        traffic = _start_traffic(stack, state, [*old, bundle], settings_in_force(settings, given=False)) if live else {}
        if live:
            time.sleep(_BEFORE_AND_AFTER_S)
        with _showing_rollout() as on_change:
            rollout = roll_out_bundle(bundle, on_change=on_change)
        if live:
            time.sleep(_BEFORE_AND_AFTER_S)
    unharmed = _show_traffic({name: each.record for name, each in traffic.items()}) if live else True
    if rollout.phase == "refused":
        console.print(Text(f"refused: {rollout.message}", "red"))
        console.print(f"nothing was switched; {served.names} stays in service")
        return False
    console.print(f"[green]{bundle.name} answers[/]; [bold]trident rollback[/] brings {old[-1].name} back")
    return unharmed


def _start_traffic(
    stack: ExitStack, state: StackState, bundles: list[Bundle], settings: ServingSettings
) -> dict[str, Traffic]:
    """Requests to every lane, until the exit stack is closed."""
    tolerance = max(artefact_for(one, settings.runtime, settings.precision).tolerance for one in bundles)
    options = {"api_key": settings.client_key, "pause_s": _PAUSE_S}
    return {
        f"{endpoint.server} {protocol}": stack.enter_context(
            Traffic(endpoint, bundles, tolerance, protocol=protocol, **options)  # type: ignore[arg-type]
        )
        for endpoint in state.endpoints()
        for protocol in endpoint.protocols
    }


def _show_traffic(records: Mapping[str, TrafficRecord]) -> bool:
    """A row per lane. True if nothing failed and nothing was wrong."""
    unchecked = any(record.unchecked for record in records.values())
    columns = ("lane", "requests", "failed", "wrong", *(["unchecked"] if unchecked else []))
    table = plain_table(*columns, "answers by version", "slowest ms")
    for name, record in records.items():
        versions = ", ".join(f"{version}: {count}" for version, count in sorted(record.versions.items()))
        counted = [record.requests, record.failed, record.wrong, *([record.unchecked] if unchecked else [])]
        table.add_row(name, *(str(len(some)) for some in counted), versions, f"{record.slowest_s * 1000:.0f}")
    console.print(table)
    if unchecked:
        console.print("unchecked: the version that answered has no golden answer to that image", style="dim")
    faults = [
        f"{name}: {request.fault}" for name, record in records.items() for request in [*record.failed, *record.wrong]
    ]
    for fault in dict.fromkeys(faults):
        console.print(Text(fault, "red"))
    return not faults


@contextmanager
def _showing_rollout() -> Iterator[OnChange]:
    """Show the steps of a rollout."""
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
