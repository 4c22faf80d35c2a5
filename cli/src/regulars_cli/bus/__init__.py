"""`regulars bus`: what an operator sees and does on the bus, directly, whichever services run."""
