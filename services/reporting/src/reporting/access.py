"""Who may ask, and what is said when there is no answer."""

from kit.problems import Refusal
from kit.rpc import current_actor
from kit.tokens import Actor


def require_admin() -> Actor:
    """The actor of the call under way. Raises Refusal (403) unless it has the role admin."""
    actor = current_actor()
    if "admin" not in actor.roles:
        raise Refusal("forbidden", 403, "Not allowed", "This needs a key with the role admin.")
    return actor


def away() -> Refusal:
    """The refusal of a call while ClickHouse does not answer."""
    return Refusal("reporting_unavailable", 503, "The reports' database is away", "Send it again shortly.")
