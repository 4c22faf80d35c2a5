"""Asks one process how it stands: `python -m kit.probe ADDRESS`, for containers, whose images have no other tool for it.

    http://127.0.0.1:9600/readyz   200 is yes
    grpc://127.0.0.1:8601          the gRPC health service says SERVING
    grpc://127.0.0.1:8601/live     … of the service `live`

Exit codes: 0 yes; 1 no, or no answer; 2 no such address.
"""

import http.client
import sys
from urllib.parse import urlsplit

SECONDS = 3.0
_CHECK = "/grpc.health.v1.Health/Check"
# HealthCheckResponse with status SERVING, and the tag of HealthCheckRequest's service. By hand: the messages' classes would take longer
# to load than the answer to come.
_SERVING = b"\x08\x01"
_SERVICE = b"\x0a"


def ask(address: str) -> str:
    """What is wrong, in a few words; nothing if all is well.

    Raises:
        ValueError: the address is none.
    """
    parts = urlsplit(address)
    if not parts.hostname or not parts.port:
        raise ValueError(address)
    match parts.scheme:
        case "http":
            return _ask_http(parts.hostname, parts.port, parts.path or "/")
        case "grpc":
            return _ask_grpc(parts.netloc, parts.path.removeprefix("/"))
        case _:
            raise ValueError(address)


def _ask_http(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    return "" if status == http.HTTPStatus.OK else str(status)


def _ask_grpc(host_and_port: str, service: str) -> str:
    import grpc  # noqa: PLC0415 - large, and most processes are asked over HTTP

    name = service.encode()
    request = _SERVICE + bytes([len(name)]) + name if name else b""
    with grpc.insecure_channel(host_and_port, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer: bytes = channel.unary_unary(_CHECK, None, None)(request, timeout=SECONDS)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code.name
    return "" if answer == _SERVING else "not serving"


def main(arguments: list[str]) -> int:
    """Command line: one address."""
    try:
        (address,) = arguments
        wrong = ask(address)
    except ValueError:
        print("usage: python -m kit.probe http://HOST:PORT/PATH | grpc://HOST:PORT[/SERVICE]", file=sys.stderr)
        return 2
    if wrong:
        print(f"{address}: {wrong}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
