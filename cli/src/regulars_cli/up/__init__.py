"""One machine runs everything: `regulars up` starts PostgreSQL and the services as processes of their own, `regulars down` stops them."""


class CannotStart(Exception):
    """What stands in the way of a start, as one sentence for the person who called it."""
