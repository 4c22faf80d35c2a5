"""`regulars doctor`: what an operator would look at first, looked at, and for each thing that is wrong what to do.

It reads only: no check writes, commits an offset or takes a lock that others wait for.

findings.py      what a check says
surroundings.py  where everything is: the environment of a pod, else the installation's `var/up.json`
databases.py     PostgreSQL: addresses, versions, migrations, clocks, connections, archiving, outbox
bus.py           topics, lag, dead letters
facts.py         ClickHouse
services.py      the gateway, member and reporting, and which release runs
keys.py          key files, and whether they are those that the databases were written with
disks.py         the folders of an installation on this machine
command.py       runs all of them, and prints
"""
