"""The supervisor: a process that starts the servers, reports when they are ready, repairs or restarts them, rolls out
new versions, and stops everything.

    python -m serving.stack.supervisor FOLDER SERVER... [--owner-fd N] [--timing JSON]      (settings by environment)

With an owner, it stops when the other end of pipe N is closed, also if the owner was killed. On SIGUSR1 it rolls out the
bundle that `rollout.request` in its folder names.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from bundle.errors import DeploymentError, TridentError
from bundle.store import Bundle
from serving.clients.endpoint import SERVERS, ServerName
from serving.deployment import Deployment, read_verified
from serving.processes import adopt_orphans
from serving.servers.server import Server, server_class
from serving.settings import ServingSettings, load_settings
from serving.stack.canary import Canary
from serving.stack.lifecycle import Lifecycle
from serving.stack.reaper import Reaper
from serving.stack.rollout import roll_out
from serving.stack.state import (
    ROLLOUT_REQUEST,
    UP,
    RolloutPhase,
    RolloutState,
    ServerState,
    StackState,
    log_path,
    write_state,
)
from serving.stack.timing import SupervisionTiming

log = logging.getLogger("trident.supervisor")


class Supervisor:
    """Runs the servers until `stop` is set."""

    def __init__(
        self,
        folder: Path,
        servers: Sequence[ServerName],
        settings: ServingSettings,
        timing: SupervisionTiming | None = None,
    ) -> None:
        self.folder = folder
        self.timing = timing or SupervisionTiming()
        if settings.cores:
            os.sched_setaffinity(0, settings.cores)  # inherited by every server
        self.settings = settings = settings.resolved()  # readers of the state may have other cores
        self.stop = asyncio.Event()
        self.rollout_requested = asyncio.Event()
        self.rolling_out = False
        self.deployment = Deployment.of(settings)
        self.canary = Canary(self.deployment, settings)
        self.lives = {name: Lifecycle(self._make_server(name), self) for name in servers}
        self.state = StackState(
            pid=os.getpid(),
            process_created=psutil.Process().create_time(),
            settings=settings,
            bundles=[bundle.path for bundle in self.deployment],
            servers={name: ServerState() for name in servers},
        )

    def _make_server(self, name: ServerName) -> Server:
        made = server_class(name)(self.settings, self.deployment, self.folder / name)
        made.repair_after_s = self.timing.repair_after_s
        return made

    async def run(self) -> None:
        """Until `stop` is set."""
        self._write_state()
        self.reaper = Reaper()
        try:
            async with asyncio.TaskGroup() as tasks:
                rollouts = tasks.create_task(self._roll_out_on_request())
                for life in self.lives.values():
                    tasks.create_task(life.run())
                await self.stop.wait()
                rollouts.cancel()
        finally:
            self.reaper.close()

    # --- for `Lifecycle`

    def state_of(self, name: ServerName) -> ServerState:
        """The server's public state."""
        return self.state.servers[name]

    def note(self, name: ServerName, **changes: object) -> None:
        """Change the server's public state."""
        self.state.servers[name] = ServerState.model_validate(self.state.servers[name].model_dump() | changes)
        log.info("%s: %s", name, ", ".join(f"{key}={value}" for key, value in changes.items() if key != "endpoint"))
        self._write_state()

    def log_path(self, name: ServerName) -> Path:
        """The file that the server's output goes to."""
        return log_path(self.folder, name)

    # --- rollouts

    async def _roll_out_on_request(self) -> None:
        while True:
            await self.rollout_requested.wait()
            self.rollout_requested.clear()
            try:
                request = (self.folder / ROLLOUT_REQUEST).read_text()
            except OSError as error:  # anybody may send the signal
                log.warning("a rollout was requested, but there is no request: %s", error)
                continue
            await self._roll_out(Path(request))

    async def _roll_out(self, path: Path) -> None:
        """Replace the served version of a model by the bundle in `path`."""
        number = self.state.rollout.number + 1 if self.state.rollout else 1
        self._note_rollout(RolloutState(number=number, bundle=path))
        loop = asyncio.get_running_loop()

        def on_phase(phase: RolloutPhase) -> None:
            loop.call_soon_threadsafe(lambda: self._change_rollout({"phase": phase}))

        def on_step(server: ServerName, step: str) -> None:
            loop.call_soon_threadsafe(lambda: self._change_rollout({}, {server: step}))

        try:
            new, fingerprint = await asyncio.to_thread(read_verified, path)
            old = self._replaced_by(new)
            deployment = self.deployment.replace(old, new, fingerprint)
            canary = await asyncio.to_thread(self.canary.replaced, deployment)
        except TridentError as error:
            self._change_rollout({"phase": "refused", "message": error.message})
            return
        except Exception as error:  # an unforeseen way in which a bundle differs from its manifest
            log.exception("the rollout of %s failed", path)
            self._change_rollout({"phase": "refused", "message": f"{type(error).__name__}: {error}"})
            return
        servers = {name: life.server for name, life in self.lives.items()}
        self.rolling_out = True
        try:
            await asyncio.to_thread(roll_out, servers, old, new, self.settings, on_phase, on_step)
        except TridentError as error:
            self._refuse(error.message)
        except Exception as error:
            log.exception("the rollout of %s failed", path)
            self._refuse(f"{type(error).__name__}: {error}")
        else:
            self.deployment, self.canary = deployment, canary
            for server in servers.values():
                server.deployment = deployment
            self.state.bundles = [bundle.path for bundle in self.deployment]
            self.state.previous = old.path
            await asyncio.sleep(0)  # for the last steps
            self._change_rollout({"phase": "done"})
        finally:
            self.rolling_out = False

    def _refuse(self, message: str) -> None:
        """A server that starts again writes its files again: nothing of the new version may be left in them."""
        for life in self.lives.values():
            life.prepare_again()
        self._change_rollout({"phase": "refused", "message": message})

    def _replaced_by(self, new: Bundle) -> Bundle:
        """The served version that `new` replaces.

        Raises:
            DeploymentError: it cannot be rolled out.
        """
        down = [name for name, state in self.state.servers.items() if state.phase not in UP]
        if down:
            raise DeploymentError(f"{', '.join(down)} is not ready; see `trident status`")
        if any(bundle.manifest == new.manifest for bundle in self.deployment):
            raise DeploymentError(f"{new.name} is served already")
        served = self.deployment.versions(new.manifest.model)
        if not served:
            names = self.deployment.names
            raise DeploymentError(
                f"{new.name} is not a version of a served model ({names}); start it with `trident up`"
            )
        if any(bundle.manifest.version == new.manifest.version for bundle in served):
            raise DeploymentError(f"another {new.name} is served already; export under a new version")
        return served[-1]

    def _change_rollout(self, changes: dict[str, object], steps: dict[ServerName, str] | None = None) -> None:
        assert self.state.rollout is not None
        merged = self.state.rollout.steps | (steps or {})
        self._note_rollout(self.state.rollout.model_copy(update={**changes, "steps": merged}))

    def _note_rollout(self, rollout: RolloutState) -> None:
        self.state.rollout = rollout
        log.info("rollout of %s: %s %s %s", rollout.bundle, rollout.phase, rollout.steps, rollout.message)
        self._write_state()

    def _write_state(self) -> None:
        try:
            write_state(self.state, self.folder)
        except OSError as error:  # a full disk must not end the servers; the next change is written again
            log.warning("the state could not be written: %s", error)


async def _supervise(arguments: argparse.Namespace, settings: ServingSettings) -> None:
    loop = asyncio.get_running_loop()
    timing = SupervisionTiming.model_validate_json(arguments.timing)
    supervisor = Supervisor(arguments.folder, arguments.servers, settings, timing)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop.set)
    loop.add_signal_handler(signal.SIGUSR1, supervisor.rollout_requested.set)
    if arguments.owner_fd is not None:
        loop.add_reader(arguments.owner_fd, supervisor.stop.set)  # readable means closed: nothing is ever written
    await supervisor.run()


def main() -> None:
    """Run the supervisor of one stack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("servers", nargs="+", choices=SERVERS)
    parser.add_argument("--owner-fd", type=int, help="stop when this pipe is closed")
    parser.add_argument("--timing", default="{}", help="SupervisionTiming as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    adopt_orphans()
    try:
        asyncio.run(_supervise(arguments, load_settings()))
    except TridentError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
