"""The hot route. The edge calls it without FastAPI's machinery; FastAPI documents it, and calls the same function where it must."""

from starlette.types import Receive

from gateway.bodies import Body
from gateway.callers import Caller
from gateway.http import Answer, Head
from gateway.sales.commands import write_sale
from gateway.sales.schemas import NewSale
from gateway.services import Services

SALES = "/v1/sales"
BODY_LIMIT = 4 * 1024 * 1024

_new_sale = Body(NewSale)


class SaleRecorder:
    """Answers POST /v1/sales."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, caller: Caller, head: Head, receive: Receive) -> Answer:
        """The answer to a sale, which is sent in the lane of its member, or of its operation without one."""
        raw = await head.json_body(receive, BODY_LIMIT)
        sale = _new_sale.read(raw)
        member = self._services.member
        write = member.write(caller, "POST", SALES, raw, sale)
        command = member.command(write)
        await write_sale(self._services, sale, command)
        return await member.decide(command.record_sale.member_id or write.operation_id, command, write.size)
