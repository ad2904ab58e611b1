"""A server as the one process of a container: configured for the deployment, then executed in place.

    python -m serving.container fastapi|torchserve|triton     (settings by environment)

It leaves the golden requests for `top1_probe` in HEALTH_FOLDER, and starts `serving/cgroup.py` beside the server.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from bundle.errors import TridentError
from bundle.store import Bundle
from serving import cgroup
from serving.clients.dialect import dialect_of
from serving.clients.endpoint import SERVERS
from serving.clients.http_wire import API_KEY_HEADER
from serving.container.top1_probe import FOLDER as HEALTH_FOLDER
from serving.deployment import Deployment
from serving.servers.server import Server, server_class
from serving.settings import load_settings

RUN: Final = Path("/tmp/trident")  # noqa: S108 - the container's own, empty at every start


def golden_request(server: Server, bundle: Bundle) -> dict[str, Any]:
    """A golden request as `top1_probe` sends it."""
    manifest, key = bundle.manifest, server.settings.client_key
    wire = dialect_of(server.name).http(manifest.model, manifest.version)
    request = wire.request(bundle.golden_inputs()[0][1], top_k=1)
    content = {
        "url": server.endpoint.url + request.path,
        "headers": dict(request.headers) | ({API_KEY_HEADER: key} if key else {}),
        "image": base64.b64encode(request.body).decode(),  # its file may be replaced by a later deployment
        "class_id": int(bundle.golden_probabilities()[0].argmax()),
        "timeout_s": server.settings.request_timeout_s + 1,  # an overloaded server gives up first, and reports it
    }
    queue_url = server.overload_url(bundle)
    return content if queue_url is None else content | {"queue": queue_url}


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("server", choices=SERVERS)
    name = parser.parse_args().server
    try:
        settings = load_settings()
        deployment = Deployment.of(settings)
        server = server_class(name)(settings, deployment, RUN / name)
        server.prepare()
        command = server.start_command()
    except TridentError as error:
        sys.exit(f"error: {error.message}")
    command.folder.mkdir(parents=True, exist_ok=True)
    HEALTH_FOLDER.mkdir(mode=0o700, exist_ok=True)
    requests = [golden_request(server, bundle) for bundle in deployment]
    (HEALTH_FOLDER / "canaries.json").write_text(json.dumps(requests))
    subprocess.Popen([sys.executable, "-IS", cgroup.__file__], start_new_session=True)
    os.chdir(command.folder)
    os.execve(command.argv[0], command.argv, dict(command.environment))  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
