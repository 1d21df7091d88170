"""The one small server of every process: `/metrics` for Prometheus, `/healthz` for whoever restarts things, `/readyz`
for whoever rolls them out.

Invariant: it answers from a thread of its own, so a process that hangs is seen to hang. Refuses to know what a metric
means, and who asks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from broker.errors import Refused

JUDGED = {"/healthz": "healthy", "/readyz": "ready"}


class Exposed(Protocol):
    """What the server needs."""

    @property
    def registry(self) -> CollectorRegistry:
        """What is shown."""


class Server:
    """`/metrics`, `/healthz` and `/readyz` on a thread of its own; `port` is the bound one, 0 when the endpoint is off.

    `/healthz` answers 503, with the same body, where `health` says `"healthy": false`, and `/readyz` where it says
    `"ready": false`.
    """

    def __init__(self, metrics: Exposed, host: str, port: int, health: Callable[[], dict[str, Any]]) -> None:
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        if port == 0:
            return

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0  # seconds: who says nothing for so long keeps no thread

            def do_GET(self) -> None:  # the name is the base class's
                if self.path == "/metrics":
                    self._answer(CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
                elif self.path in JUDGED:
                    state = health()
                    status = 200 if state.get(JUDGED[self.path], True) else 503
                    self._answer("application/json", json.dumps(state).encode(), status)
                else:
                    self.send_error(404)

            def _answer(self, kind: str, body: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a log line."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise Refused(
                f"cannot serve metrics on {host}:{port}: {error.strerror}",
                "free that port, or set [monitoring] ports (0 is off)",
            ) from None
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def serve(metrics: Exposed, host: str, port: int, health: Callable[[], dict[str, Any]]) -> Server:
    """Start the endpoint. Raises `Refused` when the port cannot be had."""
    return Server(metrics, host, port, health)
