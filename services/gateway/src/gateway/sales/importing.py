"""A history as commands: sales, reversals and returns in one group, each with an identity of its own."""

import asyncio

import msgspec
from msgspec import UNSET

from gateway.bodies import Body
from gateway.callers import Caller
from gateway.http import Answer
from gateway.imports import problem_of, require_operation_id
from gateway.member import IMPORT_SECONDS
from gateway.problems import malformed
from gateway.sales.commands import write_return, write_reversal, write_sale
from gateway.sales.recording import SALES
from gateway.sales.schemas import ImportCommand, ImportedReturn, ImportedReversal, ImportSales, NewSale
from gateway.services import Services
from kit.problems import FieldError
from regulars.member.v1 import wallet_service_pb2 as pb

# How many commands are made before the event loop may turn to the tills.
COMMANDS_AT_ONCE = 20
IMPORT_MILLISECONDS = int(IMPORT_SECONDS * 1000)
IMPORTED_REVERSALS = "/v1/sales:import/reversals"
IMPORTED_RETURNS = "/v1/sales:import/returns"

_import = Body(ImportSales)
_command = Body(ImportCommand)
_sale = Body(NewSale)
_reversal = Body(ImportedReversal)
_return = Body(ImportedReturn)


async def import_history(services: Services, commands: list[pb.Command]) -> Answer:
    """What became of each command, in order; they are decided in one group, in a lane of the imports."""
    outcomes = await services.member.import_lanes.run(commands)
    return Answer(
        200,
        msgspec.json.encode(
            {
                "outcomes": [
                    {
                        "operation_id": command.operation_id,
                        "status": outcome.status,
                        "replayed": outcome.replayed,
                        "amount_minor": outcome.amount_minor,
                        "problem": problem_of(outcome),
                    }
                    for command, outcome in zip(commands, outcomes, strict=True)
                ]
            }
        ),
    )


async def read_commands(services: Services, caller: Caller, raw: bytes) -> list[pb.Command]:
    """The commands of an import, in order. Raises Refusal (400) when one of them is malformed."""
    commands = []
    for index, each in enumerate(_import.read(raw).commands):
        commands.append(await _read_command(services, caller, bytes(each), f"/commands/{index}"))
        if index % COMMANDS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return commands


async def _read_command(services: Services, caller: Caller, raw: bytes, at: str) -> pb.Command:
    given = _command.read(raw, at)
    parts = [(name, part) for name in ImportCommand.__struct_fields__ if (part := getattr(given, name)) is not UNSET]
    if len(parts) != 1:
        raise malformed([FieldError(at, "one_of", "Send one of a sale, a reversal or a return.")])
    name, part = parts[0][0], bytes(parts[0][1])
    member = services.member
    if name == "sale":
        # The same request as a till's, so that either is a replay of the other.
        at += "/sale"
        sale = _sale.read(part, at)
        require_operation_id(sale, at)
        command = member.command(member.write(caller, "POST", SALES, part, sale), IMPORT_MILLISECONDS)
        await write_sale(services, sale, command, at)
    elif name == "reversal":
        at += "/reversal"
        reversal = _reversal.read(part, at)
        require_operation_id(reversal, at)
        command = member.command(member.write(caller, "POST", IMPORTED_REVERSALS, part, reversal), IMPORT_MILLISECONDS)
        command.reverse_sale.sale_operation_id = reversal.sale_operation_id
        await write_reversal(services, reversal, command.reverse_sale, at)
    else:
        at += "/return"
        returned = _return.read(part, at)
        require_operation_id(returned, at)
        command = member.command(member.write(caller, "POST", IMPORTED_RETURNS, part, returned), IMPORT_MILLISECONDS)
        await write_return(services, returned, command.record_return, at)
    return command
