"""Locust's user for all servers: sends pictures whose answers are known, times each request itself, checks each answer.

Locust's own statistics (and so its web UI) are fed as well, but they round; the measurement is `Recorder`'s.
"""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from geventhttpclient import HTTPClient
from geventhttpclient.url import URL
from locust import User, constant, task

from loadtest.recording import new_histogram
from loadtest.targets import AnswerCheck, Question, Target

MAX_KINDS_OF_ERROR = 20


class Recorder:
    """The latencies and faults of requests that were sent while it was open."""

    def __init__(self) -> None:
        self.histogram = new_histogram()
        self.errors: Counter[str] = Counter()
        self.answered = 0
        self.failed = 0
        self.max_ns = 0
        self.opened_ns = time.perf_counter_ns()
        self.closed_ns: int | None = None

    def close(self) -> None:
        """Later answers do not count any more."""
        self.closed_ns = time.perf_counter_ns()

    def record(self, sent_ns: int, done_ns: int, fault: str) -> None:
        """One request. It counts if it was sent after opening and done before closing."""
        if sent_ns < self.opened_ns or self.closed_ns is not None:
            return
        if fault:
            self.failed += 1
            known = fault in self.errors or len(self.errors) < MAX_KINDS_OF_ERROR
            self.errors[fault if known else "(other errors)"] += 1
            return
        self.answered += 1
        self.max_ns = max(self.max_ns, done_ns - sent_ns)
        self.histogram.record_value(done_ns - sent_ns)


class PictureUser(User):
    """Sends one request after another over one kept connection. Subclass it with a target, questions and a timeout."""

    abstract = True
    wait_time = constant(0)

    target: Target
    questions: list[Question]
    timeout_s: float = 30.0
    recorder: Recorder | None = None

    _order = itertools.count()

    def on_start(self) -> None:
        """Connect; each user begins with another picture."""
        self.host = self.target.endpoint.url
        self._http = HTTPClient.from_url(
            URL(self.host), concurrency=1, connection_timeout=self.timeout_s, network_timeout=self.timeout_s
        )
        self._check = AnswerCheck(self.target.wire)
        offset = next(self._order) % len(self.questions)
        self._questions: Iterator[Question] = itertools.cycle(self.questions[offset:] + self.questions[:offset])

    def on_stop(self) -> None:
        """Disconnect."""
        self._http.close()

    @task
    def predict(self) -> None:
        """One request, one answer."""
        question = next(self._questions)
        request = question.request
        size, fault, error = 0, "", None
        sent_ns = time.perf_counter_ns()
        try:
            response = self._http.request("POST", request.path, request.body, request.headers)
            body = bytes(response.read())
            done_ns = time.perf_counter_ns()
            size = len(body)
            fault = self._check.fault(question, response.status_code, _lower(response), body)
        except OSError as reason:  # refused, reset, timed out
            done_ns = time.perf_counter_ns()
            fault, error = f"{type(reason).__name__}: {reason}", reason
        if self.recorder is not None:
            self.recorder.record(sent_ns, done_ns, fault)
        self.environment.events.request.fire(
            request_type="POST",
            name=self.target.lane,
            response_time=(done_ns - sent_ns) / 1e6,
            response_length=size,
            exception=(error or RuntimeError(fault)) if fault else None,
            context={},
        )


def _lower(response: Any) -> dict[str, str]:
    return {key.lower(): value for key, value in response.items()}
