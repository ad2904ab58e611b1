"""The versions in a running FastAPI service, by its repository API."""

from bundle.store import Bundle
from serving.clients.http_wire import API_KEY_HEADER
from serving.server_api import call
from serving.settings import ServingSettings

_TIMEOUT_S = 180.0  # a load is done when every worker process has done it


class FastapiVersions:
    """`serving.servers.server.Versions`."""

    def __init__(self, url: str, settings: ServingSettings) -> None:
        self._url = f"{url}/v2/repository/models"
        self._headers = {} if settings.client_key is None else {API_KEY_HEADER: settings.client_key}

    def load(self, bundle: Bundle) -> None:
        """Every worker loads it, warms it up, and checks it against its golden answers."""
        self._call(bundle, "load", {"version": bundle.manifest.version, "make_default": False})

    def make_default(self, bundle: Bundle) -> None:
        """It is loaded already, so this only switches."""
        self._call(bundle, "load", {"version": bundle.manifest.version, "make_default": True})

    def unload(self, bundle: Bundle) -> None:
        """The service itself lets it answer what it has taken."""
        self._call(bundle, "unload", {"version": bundle.manifest.version})

    def _call(self, bundle: Bundle, action: str, parameters: dict[str, object]) -> None:
        url = f"{self._url}/{bundle.manifest.model}/{action}"
        call("POST", url, {"parameters": parameters}, self._headers, _TIMEOUT_S)
