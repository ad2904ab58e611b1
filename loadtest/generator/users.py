"""Locust's users: one that waits for its answers, and one that keeps to a schedule.

Both write a row per request into the log of the run's `Stage`, which tells them what to do and when to stop. Locust's
own statistics (and so its web UI) are fed where somebody looks at them; they round, the log does not.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import gevent
from locust import User, constant, task

from loadtest.errors import TransportError
from loadtest.generator.arrivals import endless, schedule
from loadtest.generator.http import HttpConnection, Response, prepare
from loadtest.generator.requests_log import RequestsLog
from loadtest.load import OpenLoop
from loadtest.targets import AnswerCheck, Question, Target
from serving.clients.http_wire import Wire

# A timer of libev's select backend is served within some 0.1 ms, one of its epoll backend within 1 ms; the rest is
# waited for awake, letting others run.
_AWAKE_S = {"select": 0.00015}
_AWAKE_OTHERWISE_S = 0.0012


class Connection(Protocol):
    """One connection to the target, for one request at a time."""

    def ask(self, request: Any) -> Response:
        """Send a prepared request, and read the whole answer.

        Raises:
            TransportError.
        """

    def close(self) -> None:
        """Close it."""


OnRequest = Callable[[str, float, int, str], None]


class Stage:
    """What the users of one process share during one run."""

    def __init__(
        self,
        target: Target,
        questions: list[Question],
        wire: Wire,
        timeout_s: float,
        api_key: str | None = None,
        on_request: OnRequest | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.target = target
        self.questions = questions
        self.timeout_s = timeout_s
        self.log = RequestsLog()
        self.recent_s: list[float] = []  # latencies since the warm-up last looked
        self._keep = keep
        self.measure_from_s: float | None = None
        self.measure_until_s = float("inf")
        self.in_flight = 0
        self.waited_for_connection = 0
        self.unsent = 0
        self._check = AnswerCheck(wire, target.tolerance)
        self._requests: list[Any] = [question.request for question in questions]
        if target.protocol == "http":
            self._requests = [prepare(request, target.url, api_key) for request in self._requests]
        self._on_request = on_request
        self._order = itertools.cycle(range(len(questions)))

    @property
    def over(self) -> bool:
        """No request is to be sent any more."""
        return time.perf_counter() >= self.measure_until_s

    def connection(self) -> Connection:
        """A new one."""
        if self.target.protocol == "http":
            return HttpConnection(self.target.url, self.timeout_s)
        from loadtest.generator.grpc import GrpcConnection  # grpcio is slow to import

        assert self.target.grpc is not None, "a gRPC lane has an address"
        return GrpcConnection(self.target.grpc, self.timeout_s)

    def ask(self, connection: Connection, scheduled_ns: int | None) -> None:
        """One request, one answer, one row. `scheduled_ns`: None means now."""
        number = next(self._order)
        self.in_flight += 1
        try:
            response = connection.ask(self._requests[number])
        except TransportError as error:
            done_ns = time.perf_counter_ns()
            sent_ns, fault, size = error.sent_ns, str(error), 0
            status, first_ns, timing = 0, 0, b""
        else:
            sent_ns, done_ns, size = response.sent_ns, response.done_ns, len(response.body)
            status, first_ns = response.status, response.first_byte_ns
            fault = self._check.fault(self.questions[number], status, response.lower_headers, response.body)
            timing = response.header(b"server-timing")
        finally:
            self.in_flight -= 1
        seconds = (done_ns - (scheduled_ns or sent_ns)) / 1e9
        if self._keep:
            self.log.add(scheduled_ns or sent_ns, sent_ns, first_ns, done_ns, status, size, fault, timing)
            if not fault:
                self.recent_s.append(seconds)
        if self._on_request is not None:
            self._on_request(self.target.lane, seconds * 1000, size, fault)


class ClosedLoopUser(User):
    """Sends one request after another over one kept connection."""

    abstract = True
    wait_time = constant(0)
    stage: Stage

    def on_start(self) -> None:
        """Connect at the first request."""
        self.host = self.stage.target.url
        self._connection = self.stage.connection()

    def on_stop(self) -> None:
        """Disconnect."""
        self._connection.close()

    @task
    def predict(self) -> None:
        """One request, one answer, and again (in a loop of its own: Locust's costs more than a request)."""
        while not self.stage.over:
            self.stage.ask(self._connection, None)
        gevent.sleep(3600)  # until Locust stops this user


class OpenLoopUser(User):
    """Sends requests when its schedule says, each in a greenlet of its own, on whichever connection is free.

    Its schedule is made before it is needed. Latency counts from the scheduled instant: if the server (or the
    generator) is late, all that were to come meanwhile are late too, and show it.
    """

    abstract = True
    wait_time = constant(0)
    stage: Stage
    loop: OpenLoop
    seed: int = 0
    share: float = 1.0
    max_in_flight: int = 512

    def on_start(self) -> None:
        """No connection yet."""
        self.host = self.stage.target.url
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting: deque[int] = deque()
        self._awake_s = _AWAKE_S.get(gevent.get_hub().loop.backend, _AWAKE_OTHERWISE_S)

    def on_stop(self) -> None:
        """Disconnect."""
        for connection in self._idle:
            connection.close()

    @task
    def keep_to_schedule(self) -> None:
        """The warm-up, then the measured schedule, then nothing."""
        warm_up = endless(self.loop.rate * self.share, self.loop.arrivals, self.seed + 1, time.perf_counter())
        self._send_until(warm_up, lambda at: self.stage.measure_from_s is not None and at >= self.stage.measure_from_s)
        assert self.stage.measure_from_s is not None
        arrivals = schedule(self.loop, self.seed, self.share) + self.stage.measure_from_s
        left = self._send_until(iter(arrivals.tolist()), lambda at: at >= self.stage.measure_until_s)
        self.stage.unsent += left
        gevent.sleep(3600)

    def _send_until(self, arrivals: Iterator[float], ended: Callable[[float], bool]) -> int:
        """Send each arrival at its instant, up to the first that belongs to the next part. Returns how many never left."""
        for at in arrivals:
            while (left_s := at - time.perf_counter()) > 0:
                if ended(time.perf_counter()):
                    return 0
                gevent.sleep(max(0.0, min(left_s - self._awake_s, 0.1)))
            if ended(at):
                return 0
            if time.perf_counter() > self.stage.measure_until_s + self.stage.timeout_s:
                return 1 + sum(1 for _ in arrivals)
            self._send(round(at * 1e9))
            gevent.sleep(0)  # lets it leave now, and answers be read when the schedule is late
        return 0

    def _send(self, scheduled_ns: int) -> None:
        if self._idle:
            gevent.spawn(self._ask, self._idle.pop(), scheduled_ns)
        elif self._open < self.max_in_flight:
            self._open += 1
            gevent.spawn(self._ask, self.stage.connection(), scheduled_ns)
        else:
            self.stage.waited_for_connection += 1
            self.stage.in_flight += 1
            self._waiting.append(scheduled_ns)

    def _ask(self, connection: Connection, scheduled_ns: int) -> None:
        self.stage.ask(connection, scheduled_ns)
        while self._waiting:
            scheduled_ns = self._waiting.popleft()
            self.stage.in_flight -= 1
            self.stage.ask(connection, scheduled_ns)
        self._idle.append(connection)
