"""What became of a write that was cut off."""

from fastapi import APIRouter, Response

from gateway.openapi import gives, ref
from gateway.operations.operations import find_operation
from gateway.operations.schemas import Operation
from gateway.parameters import OperationIdInPath
from gateway.services import AnyCaller, GatewayServices
from regulars.member.v1 import wallet_service_pb2 as pb

router = APIRouter(prefix="/v1", tags=["Operations"])


@router.get("/operations/{operation_id}", summary="What became of a write", responses=gives(ref(Operation)))
async def get_operation(services: GatewayServices, caller: AnyCaller, operation_id: OperationIdInPath) -> Response:
    """404 `operation_not_found`: it was never decided, and may be sent again."""
    answer = await find_operation(services, operation_id)
    if answer is None:
        answer = await services.member.read(caller, services.member.wallet.GetOperation, pb.GetOperationRequest(operation_id=operation_id))
    return answer.response()
