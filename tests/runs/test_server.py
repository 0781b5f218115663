"""An MLflow server that is away for a while."""

import contextlib
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from sft_lab.errors import RequestError, RunError
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.store_uri import check_store

RUN = {"info": {"run_id": "1f" * 16, "run_uuid": "1f" * 16, "experiment_id": "0"}, "data": {}}


class Server(ThreadingHTTPServer):
    """Answers as MLflow does; while it is away, as a proxy before it does."""

    health = b"OK"
    away_s = 10.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.is_there = Event()
        self.is_there.set()
        self.points: list[tuple[str, int]] = []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer(
            self.server.health if self.path == "/health" else json.dumps({"run": RUN}).encode()
        )

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.server.is_there.is_set():
            self.server.is_there.wait(self.server.away_s)
            self.send_error(503)
            return
        self.server.points += [(p["key"], p["step"]) for p in content.get("metrics", [])]
        self.answer(b"{}")

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with Server() as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_points_wait_while_a_server_is_away_and_keep_their_order(server: Server) -> None:
    logger = RunLogger(server.uri, run_id="1f" * 16)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.flush()
    server.is_there.clear()
    for step in (1, 2, 3):  # training continues
        logger.log_metrics({"loss": 1.0}, step=step)
    assert server.points == [("loss", 0)]
    server.is_there.set()
    logger.flush()
    assert server.points == [("loss", step) for step in range(4)]


def test_a_server_that_stays_away_ends_the_run_in_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logger = RunLogger(server.uri, run_id="1f" * 16)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.flush()
    server.is_there.clear()
    server.away_s = 0
    logger.log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(RunError, match="the MLflow server has not answered for two minutes"):
        logger.flush()
    began = time.monotonic()
    with pytest.raises(RunError, match="has not answered"):  # not tried again
        logger.log_metrics({"loss": 1.0}, step=2)
    assert time.monotonic() - began < 1


def test_a_stop_does_not_wait_for_a_server_that_is_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft_lab.runs.logger.STOP_WAIT_S", 0.2)
    logger = RunLogger(server.uri, run_id="1f" * 16)
    logger.log_metrics({"loss": 1.0}, step=0)
    assert logger.flush(lambda: True)
    server.is_there.clear()
    logger.log_metrics({"loss": 1.0}, step=1)
    began = time.monotonic()
    assert not logger.flush(lambda: True)
    logger.end("KILLED")
    assert time.monotonic() - began < 5
    server.is_there.set()
    assert logger.flush()
    assert server.points == [("loss", 0), ("loss", 1)]


def test_a_server_of_something_else_is_refused(server: Server) -> None:
    server.health = b"<html>welcome</html>"
    with pytest.raises(RequestError, match="is not an MLflow server"):
        check_store(server.uri)


def test_a_server_that_answers_byte_by_byte_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft_lab.runs.store_uri._HEALTH_S", 0.2)

    def drip(handler: Handler, content: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.01)

    monkeypatch.setattr(Handler, "answer", drip)
    began = time.monotonic()
    with pytest.raises(RequestError, match=r"no MLflow server answers at .* \(no answer within"):
        check_store(server.uri)
    assert time.monotonic() - began < 2
