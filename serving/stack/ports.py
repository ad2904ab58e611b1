"""TCP ports on this machine."""

import socket
from collections.abc import Sequence

from bundle.errors import DeploymentError
from serving.clients.endpoint import ServerName
from serving.settings import Ports


def ports_of(server: ServerName, ports: Ports) -> dict[str, int]:
    """The ports that a server opens, by setting."""
    return {name: number for name, number in ports.model_dump().items() if name.partition("_")[0] == server}


def free_ports() -> Ports:
    """Free ports, all different."""
    names = list(Ports.model_fields)
    sockets = [socket.socket() for _ in names]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return Ports(**{name: sock.getsockname()[1] for name, sock in zip(names, sockets, strict=True)})
    finally:
        for sock in sockets:
            sock.close()


def check_ports_free(servers: Sequence[ServerName], ports: Ports, host: str) -> None:
    """Check that no port is in use.

    Raises:
        DeploymentError: names the ports in use, and the settings that change them.
    """
    taken = [
        f"port {number} ({name}; change it by TRIDENT_PORTS__{name.upper()}=...)"
        for server in servers
        for name, number in ports_of(server, ports).items()
        if not _is_free(host, number)
    ]
    if taken:
        raise DeploymentError(f"already in use: {', '.join(taken)}; or use --free-ports")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: ports in TIME_WAIT are free
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True
