"""A server as the one process of a container: configured for what is deployed, then executed in place.

    python -m serving.container fastapi|torchserve|triton     (settings by environment)

What `health` needs to ask real questions is left in HEALTH_FOLDER; `cgroup` runs beside the server.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bundle.errors import TridentError
from bundle.store import Bundle, find_bundle
from serving import cgroup
from serving.clients.endpoint import SERVERS, ServerName
from serving.clients.http_wire import API_KEY_HEADER, WIRES
from serving.container.top1_probe import FOLDER as HEALTH_FOLDER
from serving.servers.server import ServerPlan
from serving.settings import ServingSettings, load_settings

RUN: Final = Path("/tmp/trident")  # noqa: S108 - the container's own, empty at every start


def plan(server: ServerName, settings: ServingSettings, bundles: Sequence[Bundle]) -> ServerPlan:
    """The server's plan. Each image has the packages of its own server only, hence the imports here."""
    if server == "fastapi":
        from serving.fastapi_server.launch import plan_fastapi as planner
    elif server == "torchserve":
        from serving.torchserve_server.launch import plan_torchserve as planner
    else:
        from serving.triton_server.launch import plan_triton as planner
    return planner(settings, bundles, RUN / server)


def canary(server: ServerName, url: str, bundle: Bundle, settings: ServingSettings) -> dict[str, Any]:
    """A question with a known answer, as `health` asks it."""
    manifest, key = bundle.manifest, settings.client_key
    request = WIRES[server](manifest.model, manifest.version).request(bundle.golden_inputs()[0][1], top_k=1)
    question = {
        "url": url + request.path,
        "headers": dict(request.headers) | ({API_KEY_HEADER: key} if key else {}),
        "image": base64.b64encode(request.body).decode(),  # its file may be deployed over
        "class_id": int(bundle.golden_probabilities()[0].argmax()),
        "timeout_s": settings.request_timeout_s + 1,  # a server under load gives up first, and says so
    }
    if server == "torchserve":
        from serving.torchserve_server.configuration import LOOPBACK

        management = f"http://{LOOPBACK}:{settings.ports.torchserve_management}"
        question["queue"] = f"{management}/models/{manifest.model}/{manifest.version}"
    return question


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("server", choices=SERVERS)
    server: ServerName = parser.parse_args().server
    try:
        settings = load_settings()
        bundles = [find_bundle(reference, settings.bundles) for reference in settings.models or (None,)]
        planned = plan(server, settings, bundles)
    except TridentError as error:
        sys.exit(f"error: {error.message}")
    planned.before_start()
    planned.folder.mkdir(parents=True, exist_ok=True)
    HEALTH_FOLDER.mkdir(mode=0o700, exist_ok=True)
    questions = [canary(server, planned.endpoint.url, bundle, settings) for bundle in bundles]
    (HEALTH_FOLDER / "canaries.json").write_text(json.dumps(questions))
    subprocess.Popen([sys.executable, "-IS", cgroup.__file__], start_new_session=True)
    os.chdir(planned.folder)
    os.execve(planned.command[0], planned.command, dict(planned.environment))  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
