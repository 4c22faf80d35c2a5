"""A made-up next release, to upgrade to and to roll back from: migrations of every database, and a service with a database of its own."""
