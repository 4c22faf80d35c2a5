"""A ClickHouse server, asked over HTTP so that the command needs no driver."""

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx


class Refused(Exception):
    """ClickHouse answered with an error: its number, and no text, which may hold values."""

    def __init__(self, said: str, code: str) -> None:
        super().__init__(f"{said}, code {code}" if code else said)
        self.code = code


class ClickHouse:
    """Asks the server at `http(s)://user:password@host:port/database`; the password comes from the file, if there is one.

    Raises, when it is made: OSError, ValueError for a file or an address that cannot be read.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, password_file: str) -> None:
        parts = urlsplit(url)
        given = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._http = http
        self._url = f"{parts.scheme}://{parts.hostname}:{parts.port or (8443 if parts.scheme == 'https' else 8123)}/"
        self._auth = (
            unquote(parts.username or "default"),
            Path(password_file).read_text("utf-8").strip() if password_file else unquote(parts.password or ""),
        )
        self.database = unquote(parts.path.strip("/")) or given.get("database", "default")

    async def __call__(self, statement: str, *, anywhere: bool = False) -> list[list[str]]:
        """The rows of the answer; `anywhere`: also where the database of the address is not there.

        Raises:
            Refused: the statement failed.
            httpx.HTTPError: no answer.
        """
        # Every server has `system`; what it would choose by itself may be the database that is just being renamed.
        parameters = {"database": "system" if anywhere else self.database}
        # Not by GET: a server logs the addresses that it is asked by.
        answer = await self._http.post(self._url, params=parameters, content=statement, auth=self._auth)
        if not answer.is_success:
            raise Refused(str(answer.status_code), answer.headers.get("X-ClickHouse-Exception-Code", ""))
        return [line.split("\t") for line in answer.text.splitlines()]
