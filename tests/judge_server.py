"""Serve a judge's endpoint on loopback that can also fail, stall, drop and answer nonsense."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


def completion(text: str | None, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return json.dumps({"model": "judge-2026-11", "choices": choices}).encode()


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    drop: bool = False
    trickle: bool = False


AT_ONCE = {"retry-after-ms": "1"}  # the SDK's own back-off begins with half a second
ERROR_500 = Reply(b'{"error": {"message": "out of memory"}}', 500, AT_ONCE)
DROP = Reply(drop=True)


class Server(ThreadingHTTPServer):
    """Answers a prompt with its planned replies, then with ``[[7]]``; records all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.planned: dict[str, list[Reply]] = {}
        self.models = Reply(b'{"object": "list", "data": [{"id": "judge"}, {"id": "other"}]}')
        self.asked: list[str] = []
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def reply_to(self, prompt: str) -> Reply:
        with self.lock:
            self.asked.append(prompt)
            self.times.append(time.monotonic())
            planned = self.planned.get(prompt, [])
            return planned.pop(0) if planned else Reply(completion(f"{prompt}: [[7]]"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send(self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        try:
            self.send(self.server.reply_to(body["messages"][-1]["content"]))
        finally:
            with self.server.lock:
                self.server.open -= 1

    def send(self, reply: Reply) -> None:
        self.server.closing.wait(reply.wait_s)
        if reply.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(10_000 if reply.trickle else len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        while reply.trickle and not self.server.closing.wait(0.02):
            self.wfile.write(b" ")
        self.wfile.write(reply.body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has given up
            self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01)).start()
        yield server
        server.closing.set()
        server.shutdown()
