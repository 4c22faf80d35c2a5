"""How ClickHouse is asked; what it answers is tested where it is asked."""

import asyncio
from base64 import b64encode

import httpx
import pytest

from regulars_cli.clickhouse import ClickHouse, Refused


def ask(url: str, answer: httpx.Response) -> httpx.Request:
    """What the server was sent."""
    sent = []

    def hear(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return answer

    async def act() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(hear)) as http:
            await ClickHouse(http, url, "")("SELECT 'a secret'")

    asyncio.run(act())
    return sent[0]


def test_who_asks_is_read_from_the_url_as_the_services_read_it() -> None:
    sent = ask("https://some%40one:p%2Fw%25d@reports.example/fac%20ts", httpx.Response(200))
    assert sent.headers["Authorization"] == f"Basic {b64encode(b'some@one:p/w%d').decode()}"
    assert (sent.url.host, sent.url.port, sent.url.params["database"]) == ("reports.example", 8443, "fac ts")
    # An address is written to logs on its way.
    assert "secret" not in str(sent.url)


def test_a_refusal_is_a_number_and_no_text() -> None:
    answer = httpx.Response(500, headers={"X-ClickHouse-Exception-Code": "497"}, text="Code: 497. 'a secret': not enough privileges")
    with pytest.raises(Refused, match=r"^500, code 497$") as refused:
        ask("http://127.0.0.1:8123/reporting", answer)
    assert refused.value.code == "497"
