"""Who may ask, and what is said when there is no answer."""

from kit.problems import Refusal
from kit.rpc import current_actor
from kit.tokens import Actor
from reporting.clickhouse import ClickHouseUnavailable, FactsDamaged


def require_admin() -> Actor:
    """The actor of the call under way. Raises Refusal (403) unless it has the role admin."""
    actor = current_actor()
    if "admin" not in actor.roles:
        raise Refusal("forbidden", 403, "Not allowed", "This needs a key with the role admin.")
    return actor


def away(error: ClickHouseUnavailable) -> Refusal:
    """The refusal of a call that ClickHouse did not answer."""
    if isinstance(error, FactsDamaged):
        detail = "No sale is touched. An operator makes them anew: `regulars reporting rebuild --from-ledger`."
        return Refusal("facts_damaged", 503, "What reports are made of cannot be read", detail)
    return Refusal("reporting_unavailable", 503, "The reports' database is away", "Send it again shortly.")
