"""How a serving process uses Python's cycle collector."""

import gc

# A group of sales makes tens of thousands of objects and no cycles; at the default of 700 the collector took 11 % of the writer's time.
_YOUNG = 50_000
_MIDDLE = 20
_OLD = 50


def freeze_start_up() -> None:
    """Called once, when everything that lives as long as the process is there: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
