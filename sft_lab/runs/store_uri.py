"""The address of an MLflow store: its file, and whether it can be used."""

import os
import shlex
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlparse
from urllib.request import urlopen

from sft_lab.config.check import MLFLOW_CREDENTIALS
from sft_lab.errors import RequestError, has_credentials
from sft_lab.paths import check_folder

_HEALTH_S = 5.0
_SQLITE = "sqlite:///"
_ENCODED = "sqlite+pysqlite:///"  # as MLflow passes it to processes that this one starts
URI_KEY = "tracking_uri"
"""The name of an option, and the end of a config's key."""


def default_store() -> str:
    """Return the store of commands that are given none."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlruns/mlflow.db"


def store_option(tracking_uri: str) -> str:
    """Return what a command needs to find a store: nothing, or `` --tracking_uri URI``."""
    is_default = tracking_uri == default_store()
    return "" if is_default else f" --tracking_uri {shlex.quote(tracking_uri)}"


def absolute(tracking_uri: str) -> str:
    """Return a store's URI with an absolute path: MLflow caches open stores by their URI.

    What follows ``sqlite:///`` is the file's name as it is. SQLAlchemy would decode it and take a
    ``?`` for a query, so such names are encoded, and the driver is named, without which MLflow
    would make a folder of the encoded name.

    >>> absolute("http://localhost:5000"), absolute("sqlite:////lab/50%/mlflow.db")
    ('http://localhost:5000', 'sqlite+pysqlite:////lab/50%25/mlflow.db')
    """
    file = local_file(tracking_uri)
    if file is None:
        return tracking_uri
    path = str(file.absolute())
    is_plain = not {"%", "?"}.intersection(path)
    return f"{_SQLITE}{path}" if is_plain else f"{_ENCODED}{quote(path)}"


def local_file(tracking_uri: str) -> Path | None:
    """Return the file of a local store; None for a server.

    >>> local_file(absolute("sqlite:////lab/50%/mlflow.db"))
    PosixPath('/lab/50%/mlflow.db')
    """
    if tracking_uri.startswith(_ENCODED):
        return Path(unquote(tracking_uri.removeprefix(_ENCODED)))
    is_local = tracking_uri.startswith(_SQLITE)
    return Path(tracking_uri.removeprefix(_SQLITE)) if is_local else None


def check_store(tracking_uri: str) -> None:
    """Check the store up front: MLflow would retry for minutes. A local store may not exist yet.

    Raises:
        RequestError: If a file is not an SQLite database, an address includes a password, or no
            MLflow server answers.
    """
    # After 2, 4, 8, 16, 32 and 64 seconds: a server may restart under a run. One that is down when
    # a command starts is found below.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    file = local_file(tracking_uri)
    if file is not None:
        _check_sqlite(file)
        return
    if has_credentials(tracking_uri, needs_scheme=False):
        raise RequestError(f"{URI_KEY}: {MLFLOW_CREDENTIALS}")
    server = urlparse(tracking_uri)
    if server.scheme not in ("http", "https") or server.hostname is None:
        raise RequestError(
            f"{URI_KEY}: expected sqlite:///FILE or http(s)://SERVER, got {tracking_uri!r}."
        )
    try:
        if _health(f"{tracking_uri.rstrip('/')}/health").strip() != b"OK":
            raise RequestError(
                f"{URI_KEY}: what answers at {tracking_uri} is not an MLflow server. Correct "
                "the address, or use sqlite:///mlruns/mlflow.db."
            )
    except HTTPError as fault:
        # A server that asks for credentials is left to MLflow, which has them.
        if fault.code not in (401, 403):
            raise RequestError(
                f"{URI_KEY}: {tracking_uri} is not a healthy MLflow server "
                f"(/health: {fault.code} {' '.join(str(fault.reason).split())}). Correct the "
                "address, or check the server."
            ) from fault
    except (OSError, HTTPException) as fault:
        # So are certificates: MLflow has its own settings for them.
        if not isinstance(getattr(fault, "reason", None), SSLError):
            raise RequestError(
                f"{URI_KEY}: no MLflow server answers at {tracking_uri} ({fault}). "
                "Start it, or use sqlite:///mlruns/mlflow.db."
            ) from fault


def _health(address: str) -> bytes:
    """Return the beginning of what a server answers, whole within ``_HEALTH_S``.

    The time limit of a socket begins again with every byte, so a thread waits for the answer.

    Raises:
        OSError: If there is no such answer.
    """
    answer: Future[bytes] = Future()

    def ask() -> None:
        try:
            with urlopen(address, timeout=_HEALTH_S) as opened:
                answer.set_result(opened.read(100))
        except ValueError as fault:  # an address that it redirects to
            answer.set_exception(OSError(str(fault)))
        except Exception as fault:
            answer.set_exception(fault)

    Thread(target=ask, daemon=True).start()
    try:
        return answer.result(_HEALTH_S)
    except TimeoutError:
        raise TimeoutError(f"no answer within {_HEALTH_S:g} s") from None


def _check_sqlite(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except (FileNotFoundError, NotADirectoryError):
        check_folder(URI_KEY, file.parent)
        return
    except OSError as fault:
        raise RequestError(
            f"{URI_KEY}: {file} cannot be read: {fault.strerror}. Name another file."
        ) from fault
    if start and start != b"SQLite format 3\0":
        raise RequestError(
            f"{URI_KEY}: {file} is not an SQLite database. Name another file, or move this one."
        )
