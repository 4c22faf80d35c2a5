"""`make bench-events`: the way of an event from its commit to the reports, beside bare loops over the same servers, in one run."""
