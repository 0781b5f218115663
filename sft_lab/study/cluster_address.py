"""Refuse the address of a Ray cluster that does not answer, before anything heavy is imported."""

import socket

from sft_lab.errors import RequestError


def no_cluster(address: str, fault: Exception) -> RequestError:
    """Return the error for an address at which no cluster answers."""
    return RequestError(
        f"--address {address}: no Ray cluster answers ({str(fault).splitlines()[0]}). "
        "Start one (ray start --head), or leave --address out. With ~/.ray/auth_token, "
        "the cluster asks for a token: set RAY_AUTH_MODE=token here and on every machine."
    )


def check_listening(address: str) -> None:
    """Check that something listens at ``HOST:PORT``: Ray would retry for minutes.

    Raises:
        RequestError: If nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as fault:
            raise no_cluster(address, fault) from fault
