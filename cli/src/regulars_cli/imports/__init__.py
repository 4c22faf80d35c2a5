"""Import of a shop's history: a file of invoice lines becomes members, sales, reversals and returns (docs/import.md).

`reader` gives rows, `rules` decides what they mean, `sending` gives the commands to the gateway in order, `report` counts.
"""
