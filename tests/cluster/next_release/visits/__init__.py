"""A service of the made-up next release: what the chart expects of one, and nothing else."""
