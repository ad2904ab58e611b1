"""The generator's users for Locust's own command line and web UI, against one server; one process, or master and workers:

    locust -f loadtest/locustfile.py --server triton --model digits --host http://127.0.0.1:8500
    GEVENT_BACKEND=select locust -f loadtest/locustfile.py --loop open --processes 2 --host http://127.0.0.1:8000

Closed loop: a user is a client that waits for its answers. Open loop: a user sends `--rate-per-user` requests per second on a
Poisson schedule, so the number of users sets the offered rate; latency is measured from the scheduled time. The images are the
golden images of the model's newest bundle, and every answer is checked. GEVENT_BACKEND=select makes timers exact to 0.1 ms
instead of 1 ms. Beside the web UI, /metrics has the totals for Prometheus (with several processes: of the master).
"""

import functools
import random
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.env import Environment

from bundle.golden import Fault
from bundle.store import find_bundle
from loadtest import load
from loadtest.generator.request_set import RequestSet
from loadtest.generator.users import ClosedLoopUser, OpenLoopUser, RunContext
from loadtest.lanes.golden_requests import golden_requests
from loadtest.lanes.lineup import ServerUnderTest
from serving.clients.endpoint import SERVERS, Endpoint

DEFAULT_HOST = "http://127.0.0.1:8000"
_TIMEOUT_S = 30.0


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--server", choices=SERVERS, default="fastapi", env_var="LOCUST_SERVER", help="the server at --host"
    )
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http")
    parser.add_argument("--grpc-address", default="", help="host:port, for --protocol grpc")
    parser.add_argument("--send", choices=["image", "tensor"], default="image")
    parser.add_argument("--loop", choices=["closed", "open"], default="closed")
    parser.add_argument("--rate-per-user", type=float, default=1.0, help="open loop: arrivals per second and user")
    parser.add_argument(
        "--api-keys-file",
        default="",
        env_var="TRIDENT_API_KEYS_FILE",
        help="its first key is sent to the server",
    )
    parser.add_argument(
        "--model", default="", help="MODEL or MODEL:VERSION below artifacts/bundles; default: the newest"
    )


@functools.cache
def _context(environment: Environment) -> RunContext:
    """The settings of the command line, shared by all users of this process."""
    options = environment.parsed_options
    assert options is not None
    bundle = find_bundle(options.model or None)
    url = (environment.host or DEFAULT_HOST).rstrip("/")
    endpoint = Endpoint(server=options.server, url=url, grpc=options.grpc_address or None, metrics_url=f"{url}/metrics")
    lanes = ServerUnderTest(endpoint).lanes(bundle, (options.protocol,), (options.send,))
    if not lanes:
        raise ValueError(f"{options.server} does not take {options.send} over {options.protocol}")
    wire = lanes[0].wire(bundle.manifest)
    keys = Path(options.api_keys_file).read_text().split() if options.api_keys_file else []

    def on_request(lane: str, milliseconds: float, size: int, fault: Fault | None) -> None:
        environment.events.request.fire(  # type: ignore[no-untyped-call]
            request_type=options.protocol.upper(),
            name=lane,
            response_time=milliseconds,
            response_length=size,
            exception=RuntimeError(str(fault)) if fault is not None else None,
            context={},
        )

    requests = RequestSet(lanes[0], golden_requests(lanes[0], bundle), wire, keys[0] if keys else None)
    return RunContext(lanes[0], requests, _TIMEOUT_S, on_request, keep=False)


class ClosedLoop(ClosedLoopUser):
    """A client that waits for its answers."""

    host = DEFAULT_HOST

    def on_start(self) -> None:
        """Take the settings of the command line."""
        self.run_context = _context(self.environment)
        super().on_start()


class OpenLoop(OpenLoopUser):
    """A client that sends requests on a Poisson schedule."""

    host = DEFAULT_HOST

    def on_start(self) -> None:
        """Take the settings of the command line, with its own schedule."""
        self.run_context = _context(self.environment)
        self.loop = load.OpenLoop.steady(self.environment.parsed_options.rate_per_user, 3600)
        self.seed = random.SystemRandom().getrandbits(32)
        super().on_start()


@events.init.add_listener  # type: ignore[untyped-decorator]
def _choose(environment: Environment, **_: Any) -> None:
    """Choose the user class by `--loop`."""
    options = environment.parsed_options
    environment.user_classes = [OpenLoop if options is not None and options.loop == "open" else ClosedLoop]


@events.init.add_listener  # type: ignore[untyped-decorator]
def _update_the_clock(**_: Any) -> None:
    """Update gevent's clock: the imports took seconds, which --run-time would include."""
    gevent.get_hub().loop.update_now()


@events.init.add_listener  # type: ignore[untyped-decorator]
def _publish_metrics(environment: Any, **_: Any) -> None:
    if environment.web_ui is not None:
        environment.web_ui.app.add_url_rule("/metrics", "metrics", lambda: _exposition(environment.runner))


def _exposition(runner: Any) -> tuple[str, dict[str, str]]:
    """Locust's totals in Prometheus' text format."""
    total = runner.stats.total
    samples = {
        "locust_workers": getattr(runner, "worker_count", 0),
        "locust_users": runner.user_count,
        "locust_requests_total": total.num_requests,
        "locust_failures_total": total.num_failures,
    }
    for quantile in (0.5, 0.95, 0.99):
        seconds = (total.get_current_response_time_percentile(quantile) or 0) / 1000
        samples[f'locust_response_seconds{{quantile="{quantile}"}}'] = seconds
    return "".join(f"{name} {value}\n" for name, value in samples.items()), {"content-type": "text/plain"}
