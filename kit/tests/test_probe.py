"""The probe of the images says of a real server whether it serves."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kit.probe import main

NOBODY = "127.0.0.1:1"


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def http_server() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def grpc_server(statuses: dict[str, bool]) -> Iterator[int]:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        for name, serves in statuses.items():
            response = health_pb2.HealthCheckResponse
            servicer.set(name, response.SERVING if serves else response.NOT_SERVING)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


def test_http_is_well_with_200_only() -> None:
    with http_server() as port:
        assert main([f"http://127.0.0.1:{port}/readyz"]) == 0
        assert main([f"http://127.0.0.1:{port}/"]) == 1


def test_grpc_is_well_when_the_service_named_serves() -> None:
    with grpc_server({"": True, "live": True, "ready": False}) as port:
        assert [main([f"grpc://127.0.0.1:{port}{path}"]) for path in ("", "/", "/live", "/ready", "/unknown")] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("address", [f"http://{NOBODY}/readyz", f"grpc://{NOBODY}"])
def test_nobody_there_is_not_well(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([address]) == 1
    assert capsys.readouterr().err.startswith(f"{address}: ")


@pytest.mark.parametrize("arguments", [[], ["http://127.0.0.1"], ["unix:/socket"], ["grpc://a:1", "grpc://b:2"]])
def test_what_is_no_address_is_told_apart(arguments: list[str]) -> None:
    assert main(arguments) == 2
