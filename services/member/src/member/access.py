"""What an actor may do: the service checks it itself, whoever calls."""

from kit.problems import Refusal
from kit.tokens import Actor


def require_role(actor: Actor, *roles: str) -> None:
    """Raises Refusal (403) unless the actor has one of the roles."""
    if actor.roles.isdisjoint(roles):
        raise Refusal("forbidden", 403, "Not allowed", f"This needs a key with the role {' or '.join(roles)}.")
