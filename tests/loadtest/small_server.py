"""A small HTTP server that gives a bundle's golden answers, and refuses bad requests; or does one of it wrong.

python -m tests.loadtest.small_server BUNDLE PORT [accepts-damaged|wrong-answers|slow-start]
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bundle.postprocess import answer
from bundle.store import read_bundle

MAX_BODY_BYTES = 10 * 2**20


def main() -> None:
    """Serve until killed."""
    bundle = read_bundle(Path(sys.argv[1]), check=False)
    flaw = sys.argv[3] if len(sys.argv) > 3 else ""
    labels = bundle.manifest.labels
    rows = {example.data: example.expected.probabilities for example in bundle.golden_examples()}
    if flaw == "wrong-answers":
        rows = {data: row[::-1] for data, row in rows.items()}
    some = next(iter(rows.values()))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                return self.respond(413, b"{}")
            row = rows.get(self.rfile.read(length))
            if row is None and flaw == "accepts-damaged":
                row = some
            if row is None:
                return self.respond(422, b"{}")
            top_k = int(self.headers.get("x-top-k", 5))
            return self.respond(200, json.dumps(answer(row, bundle.manifest.model, 1, labels, top_k)).encode())

        def respond(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore clients that have disconnected."""

    if flaw == "slow-start":
        time.sleep(1)
    Server(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
