"""For Locust's own command line and web UI, against one running server:

    locust -f loadtest/locustfile.py --server triton --model digits --host http://127.0.0.1:8500

The pictures are the golden ones of the model's newest bundle, and every answer is checked.
"""

from typing import Any

from locust import events

from loadtest.targets import Question, Target
from loadtest.user import PictureUser
from serving.bundle import find_bundle
from serving.server_plan import SERVERS, Endpoint


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    parser.add_argument("--server", choices=SERVERS, default="fastapi", help="whose protocol --host speaks")
    parser.add_argument(
        "--model", default="", help="MODEL or MODEL:VERSION below artifacts/bundles; default: the newest"
    )


class LocustUser(PictureUser):
    """The user that Locust starts. `--host` says where."""

    host = "http://127.0.0.1:8000"

    def on_start(self) -> None:
        """Take server, model and address from the command line."""
        options = self.environment.parsed_options
        bundle = find_bundle(options.model or None)
        url = self.environment.host or self.host
        self.target = Target(
            endpoint=Endpoint(server=options.server, url=url, metrics_url=f"{url}/metrics"),
            model=bundle.manifest.model,
            version=bundle.manifest.version,
            runtime="unknown",
        )
        self.questions = Question.all_of(bundle, self.target.wire)
        super().on_start()
