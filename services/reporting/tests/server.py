"""The engine in this process behind ClickHouse's HTTP interface, as far as the client library uses it.

Stands in for a server where there is none: `TEST_CLICKHOUSE_URL` names a real one, and then this is not used.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast
from urllib.parse import parse_qsl, urlsplit

from chdb.state import connect
from chdb.state.sqlitelike import Connection

# What speaks of the transport and is no setting of a query.
_OF_TRANSPORT = {
    "query",
    "database",
    "client_protocol_version",
    "compress",
    "enable_http_compression",
    "wait_end_of_query",
    "query_id",
    "session_id",
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, engine: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine = engine


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the signature is the library's
        pass

    def do_POST(self) -> None:
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if "Content-Length" in self.headers else self._chunks()
        try:
            answer, status = self._run(parameters, body), 200
        except RuntimeError as error:
            answer, status = str(error).encode(), 500
        self.send_response(status)
        if status != 200:
            self.send_header("X-ClickHouse-Exception-Code", answer.partition(b"Code: ")[2].partition(b".")[0].decode() or "0")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _run(self, parameters: dict[str, str], body: bytes) -> bytes:
        connection = connect(cast("_Server", self.server).engine)
        try:
            if "database" in parameters:
                connection.query(f"USE {parameters['database']}")
            for name, value in parameters.items():
                if name not in _OF_TRANSPORT and not name.startswith("param_"):
                    connection.query(f"SET {name} = '{value}'")
            values = {name.removeprefix("param_"): value for name, value in parameters.items() if name.startswith("param_")}
            head, is_insert, block = body.partition(b" FORMAT Native\n")
            if is_insert:
                return self._insert(connection, head.decode(), block)
            statement = parameters.get("query") or body.decode()
            return bytes(connection.query(statement, "TabSeparated", params=values).bytes() or b"")
        finally:
            connection.close()

    def _insert(self, connection: Connection, head: str, block: bytes) -> bytes:
        """The engine takes a block from a file only."""
        with NamedTemporaryFile(suffix=".native") as file:
            file.write(block)
            file.flush()
            connection.query(f"{head} FROM INFILE '{file.name}' FORMAT Native")
        return b""


@contextmanager
def serving(folder: Path, configuration: Path | None = None) -> Iterator[str]:
    """The URL of a server over the engine's folder, until the end of the block; with a file of settings as a server has them."""
    engine = f"{folder}?config-file={configuration}" if configuration else str(folder)
    # What goes on by itself, as a backup does, goes on between two requests.
    held = connect(engine)
    server = _Server(engine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        held.close()
