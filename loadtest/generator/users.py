"""Locust's users: one that waits for its answers, and one that follows a schedule.

Both write a row per request into the log of the run's `RunContext`, which also holds the requests and the time to stop.
Locust's own statistics round, the log does not; they are used only by Locust's command line and web UI.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import gevent
from locust import User, constant, task

from bundle.golden import Fault
from loadtest.errors import TransportError
from loadtest.generator.arrivals import endless, schedule
from loadtest.generator.http import HttpConnection, Response
from loadtest.generator.request_set import RequestSet
from loadtest.generator.requests_log import RequestsLog
from loadtest.lanes.lane import Lane
from loadtest.load import OpenLoop

# libev's timers fire within 0.1 ms (select) or 1 ms (epoll). The rest is busy waiting that lets other greenlets run.
_BUSY_WAIT_S = {"select": 0.00015}
_DEFAULT_BUSY_WAIT_S = 0.0012


class Connection(Protocol):
    """One connection to the server, for one request at a time."""

    def send(self, message: Any) -> Response:
        """Send a prepared request, and read the response.

        Raises:
            TransportError.
        """

    def close(self) -> None:
        """Close the connection."""


# Gets the lane's name, the latency in ms, the size of the response in bytes, and the fault.
OnRequest = Callable[[str, float, int, Fault | None], None]


class RunContext:
    """What the users of one process share during one run.

    Args:
        on_request: called after every request.
        keep: write a row per request.
    """

    def __init__(
        self,
        lane: Lane,
        requests: RequestSet,
        timeout_s: float,
        on_request: OnRequest | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.lane = lane
        self.requests = requests
        self.timeout_s = timeout_s
        self.log = RequestsLog()
        self.recent_s: list[float] = []  # latencies since the warm-up last read them
        self.measure_from_s: float | None = None
        self.measure_until_s = float("inf")
        self.in_flight = 0
        self.waited_for_connection = 0
        self.unsent = 0
        self._on_request = on_request
        self._keep = keep

    @property
    def over(self) -> bool:
        """Whether no more requests are to be sent."""
        return time.perf_counter() >= self.measure_until_s

    def connection(self) -> Connection:
        """Make a new connection; the first request opens it."""
        if self.lane.protocol == "http":
            return HttpConnection(self.lane.url, self.timeout_s)
        from loadtest.generator.grpc import GrpcConnection  # grpcio is slow to import

        assert self.lane.grpc is not None, "a gRPC lane has an address"
        return GrpcConnection(self.lane.grpc, self.timeout_s)

    def send(self, connection: Connection, scheduled_ns: int | None) -> None:
        """Send the next request, check the response, and log a row. `scheduled_ns`: None means now."""
        request = self.requests.next()
        self.in_flight += 1
        fault: Fault | None
        try:
            if request.kind == "aborted":
                assert isinstance(connection, HttpConnection)
                response = connection.abort(request.message, request.abort_after_s)
                fault = None
            else:
                response = connection.send(request.message)
                fault = self.requests.fault(request, response.status, response.lower_headers, response.body)
        except TransportError as error:
            response = Response(sent_ns=error.sent_ns, done_ns=time.perf_counter_ns())
            fault = Fault("no-answer", str(error))
        finally:
            self.in_flight -= 1
        if request.kind == "oversized":
            connection.close()  # the rest of the declared body is never sent
        start_ns, size = scheduled_ns or response.sent_ns, len(response.body)
        seconds = (response.done_ns - start_ns) / 1e9
        if self._keep:
            self.log.add(
                request.kind, start_ns, response.sent_ns, response.first_byte_ns, response.done_ns,
                response.status, size, fault, response.header(b"server-timing"),
            )  # fmt: skip
            if fault is None:
                self.recent_s.append(seconds)
        if self._on_request is not None:
            self._on_request(self.lane.name, seconds * 1000, size, fault)


class ClosedLoopUser(User):
    """Sends one request after another over one kept connection."""

    abstract = True
    wait_time = constant(0)
    run_context: RunContext

    def on_start(self) -> None:
        """Make a connection."""
        self.host = self.run_context.lane.url
        self._connection = self.run_context.connection()

    def on_stop(self) -> None:
        """Disconnect."""
        self._connection.close()

    @task
    def predict(self) -> None:
        """Send requests until the run is over (not in Locust's own loop, which costs more than a request)."""
        while not self.run_context.over:
            self.run_context.send(self._connection, None)
        gevent.sleep(3600)  # until Locust stops this user


class OpenLoopUser(User):
    """Sends requests on a schedule, each in its own greenlet, on any free connection.

    Latency is measured from the scheduled time: if the server (or the generator) is late, the latency of every request that
    was scheduled meanwhile includes the delay.
    """

    abstract = True
    wait_time = constant(0)
    run_context: RunContext
    loop: OpenLoop
    seed: int = 0
    share: float = 1.0
    max_in_flight: int = 512

    def on_start(self) -> None:
        """Start without connections."""
        self.host = self.run_context.lane.url
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting: deque[int] = deque()
        self._busy_wait_s = _BUSY_WAIT_S.get(gevent.get_hub().loop.backend, _DEFAULT_BUSY_WAIT_S)

    def on_stop(self) -> None:
        """Disconnect."""
        for connection in self._idle:
            connection.close()

    @task
    def follow_schedule(self) -> None:
        """Send the warm-up, then the measured schedule; then wait to be stopped."""
        warm_up = endless(self.loop.rate * self.share, self.loop.arrivals, self.seed + 1, time.perf_counter())
        self._send_until(
            warm_up, lambda at: self.run_context.measure_from_s is not None and at >= self.run_context.measure_from_s
        )
        assert self.run_context.measure_from_s is not None
        arrivals = schedule(self.loop, self.seed, self.share) + self.run_context.measure_from_s
        left = self._send_until(iter(arrivals.tolist()), lambda at: at >= self.run_context.measure_until_s)
        self.run_context.unsent += left
        gevent.sleep(3600)

    def _send_until(self, arrivals: Iterator[float], ended: Callable[[float], bool]) -> int:
        """Send each arrival at its time, up to the first for which `ended` is true. Returns how many were not sent."""
        for at in arrivals:
            while (left_s := at - time.perf_counter()) > 0:
                if ended(time.perf_counter()):
                    return 0
                gevent.sleep(max(0.0, min(left_s - self._busy_wait_s, 0.1)))
            if ended(at):
                return 0
            if time.perf_counter() > self.run_context.measure_until_s + self.run_context.timeout_s:
                return 1 + sum(1 for _ in arrivals)
            self._send(round(at * 1e9))
            gevent.sleep(0)  # sends it now, and reads answers if the schedule is late
        return 0

    def _send(self, scheduled_ns: int) -> None:
        if self._idle:
            gevent.spawn(self._send_on, self._idle.pop(), scheduled_ns)
        elif self._open < self.max_in_flight:
            self._open += 1
            gevent.spawn(self._send_on, self.run_context.connection(), scheduled_ns)
        else:
            self.run_context.waited_for_connection += 1
            self.run_context.in_flight += 1
            self._waiting.append(scheduled_ns)

    def _send_on(self, connection: Connection, scheduled_ns: int) -> None:
        self.run_context.send(connection, scheduled_ns)
        while self._waiting:
            scheduled_ns = self._waiting.popleft()
            self.run_context.in_flight -= 1
            self.run_context.send(connection, scheduled_ns)
        self._idle.append(connection)
