import grpc  # type: ignore[import-untyped]
import pytest

from dovetail.wire.status import transport_error


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_has_a_meaning(code: grpc.StatusCode) -> None:
    assert len(str(transport_error(code, None))) > 10


def test_what_the_coordinator_says_is_passed_on_readable() -> None:
    error = transport_error(grpc.StatusCode.PERMISSION_DENIED, "no\n\x1b[31m" + "x" * 1000)
    assert str(error).startswith("the coordinator refused: no  [31mxxx")
    assert len(str(error)) < 600


def test_what_grpc_says_of_a_connection_is_not_passed_on() -> None:
    details = "failed to connect to all addresses; last error: Connection refused (111)"
    error = transport_error(grpc.StatusCode.UNAVAILABLE, details)
    assert str(error) == "nothing listens at the coordinator's address: it is down, or elsewhere"
