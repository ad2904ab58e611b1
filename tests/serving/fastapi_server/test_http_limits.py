"""The service and its connections, with real sockets: slow clients, lost clients, the fast path, and shutdown."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from bundle.store import Bundle
from serving.fastapi_server.metrics import STAGES
from serving.fastapi_server.predict.endpoint import PredictEndpoint
from serving.fastapi_server.protocol import ServiceProtocol
from serving.settings import ServingSettings
from tests.serving.fastapi_server.live_service import Live, live_service
from tests.serving.fastapi_server.waiting import wait_for


@pytest.fixture(params=["model thread", "event loop"])
def live(settings: ServingSettings, request: pytest.FixtureRequest) -> Iterator[Live]:
    """A service, with batches in each of the two places."""
    with live_service(settings.model_copy(update={"read_timeout_s": 0.5, "max_body_bytes": 100_000})) as live:
        (hosted,) = live.application.service.hosting.all()
        hosted.batcher.placement.fix(request.param)
        yield live


@pytest.fixture
def image(digits: Bundle) -> bytes:
    return digits.golden_inputs()[0][1]


def request(body: bytes, length: int | None = None) -> bytes:
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length or len(body)}\r\n\r\n"
    )
    return head.encode() + body


def response(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of one response; (0, b"") if the connection was closed instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(1)  # do not read into the next response
        if not more:
            return 0, b""
        data += more
    head = data.removesuffix(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
    body = sock.recv(length, socket.MSG_WAITALL)
    return int(head.split()[1]), body


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# --- the fast path and the ordinary path


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The query strings of the requests that take the ordinary path."""
    queries: list[str] = []
    endpoint = PredictEndpoint.__call__

    async def noted(self: PredictEndpoint, scope: Scope, receive: Receive, send: Send) -> None:
        queries.append(scope["query_string"].decode())
        await endpoint(self, scope, receive, send)

    monkeypatch.setattr(PredictEndpoint, "__call__", noted)
    return queries


def test_the_fast_path_handles_parameters_and_refusals(live: Live, image: bytes, ordinary: list[str]) -> None:
    predict = partial(httpx.post, f"{live.url}/predict", content=image, headers={"Content-Type": "image/png"})
    answer = predict(params={"model": "digits", "version": 1, "top_k": 2})
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 2
    for wrong, status in ({"version": 9}, 404), ({"version": "x"}, 400), ({"top_k": 0}, 400):
        assert predict(params=wrong).status_code == status
    assert ordinary == []
    assert predict(headers={"Expect": "nothing"}, params={"top_k": 3}).status_code == 200
    assert ordinary == ["top_k=3"]
    assert live.application.service.admission.in_flight == 0


def whole_response(live: Live, message: bytes) -> bytes:
    """All bytes of one response, without what differs between any two responses."""
    with live.connect() as sock:
        sock.sendall(message)
        data = b""
        while b"\r\n\r\n" not in (data := data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")):
            data += sock.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.findall(rb"content-length: (\d+)", head)[0])
        while len(body) < length:
            body += sock.recv(65536)
    head = re.sub(rb"(date|server-timing): [^\r]*", rb"\1", head)
    return head + b"\r\n\r\n" + re.sub(rb"within [0-9.]+ s", b"within", body)


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ({}, 200),
        ({"query": b"?top_k=2&model=digits&version=1"}, 200),
        ({"key": b"wrong"}, 401),
        ({"query": b"?model=cats"}, 404),
        ({"query": b"?version=9"}, 404),
        ({"query": b"?version=x"}, 400),
        ({"query": b"?top_k=0"}, 400),
        ({"headers": b"X-Top-K: many\r\n"}, 400),
        ({"headers": b"X-Request-Timeout-Ms: soon\r\n"}, 400),
        ({"body": b""}, 400),
        ({"body": b"nonsense"}, 415),
        ({"body": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"}, 422),
        ({"body": b"\0" * 100_001}, 413),
        ({"headers": b"X-Request-Timeout-Ms: 50\r\n", "state": "blocked"}, 504),
        ({"state": "full queue"}, 429),
        ({"state": "too many in flight"}, 429),
        ({"state": "starting"}, 503),
        ({"state": "broken"}, 500),
    ],
)
def test_both_paths_send_the_same_bytes(
    case: dict[str, Any], status: int, settings: ServingSettings, image: bytes, ordinary: list[str]
) -> None:
    body = case.get("body", image)
    fast = (
        b"POST /predict%b HTTP/1.1\r\nHost: x\r\nX-Api-Key: %b\r\nX-Request-Id: 7\r\n%bContent-Length: %d\r\n\r\n%b"
        % (case.get("query", b""), case.get("key", b"secret"), case.get("headers", b""), len(body), body)
    )
    limits = {"api_keys": (SecretStr("secret"),), "max_body_bytes": 100_000}
    with live_service(settings.model_copy(update=limits)) as live:
        service = live.application.service
        (hosted,) = service.hosting.all()
        state = case.get("state")
        blocked = block(live) if state == "blocked" else threading.Event()
        if state == "full queue":
            hosted.batcher.depth = settings.queue_size
        elif state == "too many in flight":
            service.admission._limit = 0
        elif state == "starting":
            service.hosting._started = False
        elif state == "broken":
            hosted.batcher._infer = None  # type: ignore[assignment]
        responses = [whole_response(live, fast)]
        assert ordinary == []
        responses.append(whole_response(live, fast.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue", 1)))
        assert len(ordinary) == 1
        assert responses[0] == responses[1]
        assert responses[0].startswith(b"HTTP/1.1 %d " % status)
        if state == "full queue":
            hosted.batcher.depth = 0
        blocked.set()
        wait_for(lambda: service.admission.in_flight == 0)


def test_a_refusal_before_the_body_leaves_the_connection_usable(live: Live, image: bytes) -> None:
    """The fast path answers when the headers are complete, and discards the body."""
    message = request(image).replace(b"/predict", b"/predict?version=9", 1)
    head, _, body = message.partition(b"\r\n\r\n")
    with live.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert response(sock)[0] == 404
        sock.sendall(body)
        for again, status in ((message, 404), (request(image), 200)):
            sock.sendall(again)
            assert response(sock)[0] == status


# --- slow clients


@pytest.mark.serial
def test_slow_headers_are_cut_off(live: Live) -> None:
    with live.connect() as sock:
        started = time.monotonic()
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
        for _ in range(3):  # further bytes do not extend the limit
            time.sleep(0.12)  # the pace of the client
            sock.sendall(b"X-Drip: 1\r\n")
        status, body = response(sock)
        assert status == 408
        assert b"request-timeout" in body
        assert is_closed(sock)
        assert 0.4 < time.monotonic() - started < 3


def test_a_slow_body_is_cut_off(live: Live, image: bytes) -> None:
    with live.connect() as sock:
        sock.sendall(request(image[:50], len(image)))
        status, body = response(sock)
        assert status == 408
        assert is_closed(sock)
    assert b"request-timeout" in body


def test_a_silent_connection_is_closed(live: Live) -> None:
    with live.connect() as sock:
        assert is_closed(sock)


def test_the_read_limit_does_not_apply_between_requests(live: Live, image: bytes) -> None:
    with live.connect() as sock:
        for _ in range(2):
            sock.sendall(request(image))
            assert response(sock)[0] == 200
            (connection,) = connections(live)
            assert connection._read_timer is None


def test_the_read_limit_does_not_apply_to_the_answer(live: Live, image: bytes) -> None:
    blocked = block(live)
    (hosted,) = live.application.service.hosting.all()
    with live.connect() as sock:
        sock.sendall(request(image))
        wait_for(lambda: hosted.batcher.depth == 1)
        (connection,) = connections(live)
        assert connection._read_timer is None
        blocked.set()
        assert response(sock)[0] == 200


def test_a_body_too_large_is_refused_without_reading_it(live: Live, image: bytes) -> None:
    with live.connect() as sock:
        sock.sendall(request(b"", 50_000_000))
        assert response(sock)[0] == 413
        sock.sendall(b"\0" * 65536)  # a client that sends the body all the same is cut off soon
        assert is_closed(sock)


def test_a_client_that_expects_100_continue_sends_no_body(live: Live) -> None:
    with live.connect() as sock:
        head = request(b"", 50_000_000).replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")
        sock.sendall(head)
        assert response(sock)[0] == 413


def test_a_connection_can_be_used_after_a_refusal(live: Live, image: bytes) -> None:
    with live.connect() as sock:
        body = b"\0" * 150_000
        sock.sendall(request(body))
        assert response(sock)[0] == 413
        sock.sendall(request(image))
        assert response(sock)[0] == 200


def test_garbage_is_400(live: Live) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST /predict HTTP/9.9\r\n\r\n"):
        with live.connect() as sock:
            sock.sendall(garbage)
            assert sock.recv(100).startswith(b"HTTP/1.1 400")


def test_pipelined_requests_are_answered_in_order(live: Live, digits: Bundle) -> None:
    with live.connect() as sock:
        images = [data for _, data in digits.golden_inputs()[:4]]
        sock.sendall(b"".join(request(data) for data in images))
        data = b""
        while data.count(b'"predictions"') < 4:
            data += sock.recv(65536)
        best = [int(part.split(b'"class_id":')[1].split(b",")[0]) for part in data.split(b"HTTP/1.1 200")[1:]]
        assert best == digits.golden_probabilities().argmax(1)[:4].tolist()


def test_the_work_of_a_lost_client_is_cancelled(live: Live, image: bytes) -> None:
    blocked = block(live)
    (hosted,) = live.application.service.hosting.all()
    with live.connect() as busy, live.connect() as leaving, live.connect() as staying:
        busy.sendall(request(image))
        wait_for(lambda: hosted.batcher.depth == 1)
        leaving.sendall(request(image))
        staying.sendall(request(image))
        wait_for(lambda: hosted.batcher.depth == 3)
        leaving.close()
        wait_for(lambda: live.application.service.admission.in_flight == 2)
        blocked.set()
        assert response(busy)[0] == 200
        assert response(staying)[0] == 200
    text = httpx.get(f"{live.url}/metrics").text
    assert 'trident_requests_total{code="499",model="digits"} 1.0' in text
    assert 'trident_requests_total{code="200",model="digits"} 2.0' in text
    assert 'trident_stage_duration_seconds_count{model="digits",stage="inference"} 2.0' in text


def test_stopping_answers_accepted_requests(settings: ServingSettings, image: bytes) -> None:
    answers: list[int] = []
    with live_service(settings) as live:
        blocked = block(live)
        kept = live.connect()
        kept.sendall(request(image))

        def read() -> None:
            answers.append(response(kept)[0])

        reader = threading.Thread(target=read)
        reader.start()
        wait_for(lambda: live.application.service.admission.in_flight == 1)
        idle = live.connect()
        live.server.should_exit = True
        wait_for(lambda: not live.application.service.hosting.ready)
        idle.sendall(request(image))  # a request that was on its way when the server began to stop
        blocked.set()
        assert response(idle)[0] == 200
        assert is_closed(idle)
        reader.join()
        assert answers == [200]
        assert is_closed(kept)
        idle.close()
        kept.close()


def block(live: Live) -> threading.Event:
    """Block the model until the event is set."""
    go = threading.Event()
    (hosted,) = live.application.service.hosting.all()
    infer = hosted.batcher._infer

    def held(pixels: Any) -> Any:
        assert go.wait(10)
        return infer(np.ascontiguousarray(pixels))

    hosted.batcher.placement.fix("model thread")  # a blocked model must not block the event loop
    hosted.batcher._infer = held
    return go


def connections(live: Live) -> list[ServiceProtocol]:
    return [one for one in live.server.server_state.connections if isinstance(one, ServiceProtocol)]


def test_metrics_count_every_request_once(live: Live, image: bytes) -> None:
    """The collected observations arrive in the histograms once."""
    with live.connect() as sock:
        for _ in range(3):
            sock.sendall(request(image))
            assert response(sock)[0] == 200
        sock.sendall(request(b"nonsense"))
        assert response(sock)[0] == 415
    for _ in range(2):  # a second scrape adds nothing
        lines = httpx.get(f"{live.url}/metrics").text.splitlines()
    value = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert value['trident_requests_total{code="200",model="digits"}'] == 3
    assert value['trident_requests_total{code="415",model="digits"}'] == 1
    assert value['trident_rejected_total{reason="not-an-image"}'] == 1
    assert value['trident_request_duration_seconds_bucket{le="+Inf",model="digits"}'] == 3
    assert value['trident_batch_size_bucket{le="1.0",model="digits"}'] == 3
    stages = [value[f'trident_stage_duration_seconds_sum{{model="digits",stage="{stage}"}}'] for stage in STAGES]
    total = value['trident_request_duration_seconds_sum{model="digits"}']
    assert 0 < sum(stages) < total
    assert value["trident_requests_in_flight"] == 0


def test_both_paths_take_turns_on_a_connection(live: Live, image: bytes) -> None:
    ordinary = request(image).replace(b"Host: x", b"Host: x\r\nExpect: nothing", 1)
    with live.connect() as sock:
        bodies = set()
        for message in (request(image), ordinary, request(image), ordinary + request(image)):
            sock.sendall(message)
            status, body = response(sock)
            assert status == 200
            bodies.add(body)
        assert response(sock) == (200, bodies.pop())
        assert not bodies


def test_endless_headers_are_refused(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\n")
        with contextlib.suppress(OSError):  # the server closes the connection meanwhile
            for number in range(2000):
                sock.sendall(b"X-%d: " % number + b"x" * 100 + b"\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(12) == b"HTTP/1.1 431"
    with live.connect() as sock:
        sock.sendall(request(b""))
        assert response(sock)[0] == 400


def test_a_client_that_does_not_read_is_disconnected(live: Live) -> None:
    """Its responses use memory, but it does not count as in flight."""
    message = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with live.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(message * 8)
        wait_for(lambda: any(one.flow.write_paused for one in connections(live)))
        assert live.application.service.admission.in_flight == 0
        wait_for(lambda: not connections(live))


def test_a_partly_sent_request_is_answered_when_the_server_stops(settings: ServingSettings, image: bytes) -> None:
    message = request(image)
    with live_service(settings) as live, live.connect() as sock:
        sock.sendall(message[:30])
        wait_for(lambda: any(one._stage == "headers" for one in connections(live)))
        live.server.should_exit = True
        wait_for(lambda: live.application.service.hosting.ready is False)
        sock.sendall(message[30:])
        assert response(sock)[0] == 200
