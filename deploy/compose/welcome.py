"""The last of `docker compose up`: makes the demo chain where it is missing, waits until all services answer, and says how to begin.

welcome.py              that
welcome.py key ROLE     print the key of the `till` or the `admin`
"""

import json
import os
import shlex
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from kit.clock import SystemClock
from kit.ids import uuid7

NOTES = Path("/app/var/up.json")
GATEWAY = ("gateway-serve", 8600)
READY_SECONDS = 180
SHOW = "docker compose run --rm --no-deps -T welcome key"


class NotReady(Exception):
    """What did not come in time, as one sentence."""


def noted() -> dict[str, Any]:
    """What an earlier run wrote down."""
    try:
        content = json.loads(NOTES.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def note(content: dict[str, Any]) -> None:
    """Replaces the notes whole, readable by this user only."""
    fresh = NOTES.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
    fresh.replace(NOTES)


def seed(*options: str) -> dict[str, Any]:
    """What `seed-demo` prints: the ids of a store and a till, and keys if it made some."""
    done = subprocess.run((sys.executable, "-m", "gateway", "seed-demo", *options), stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def seeded() -> dict[str, Any]:
    """The demo chain with its keys. Only their hashes are kept in the database, so that keys that nobody noted can but be replaced."""
    known = {name: value for name, value in noted().items() if name in ("till_key", "admin_key")}
    answer = seed()
    if answer["till_key"]:
        return answer
    return answer | known if len(known) == 2 else seed("--new-keys")


def wait_until_ready() -> None:
    """Returns when the gateway is there and everything it needs.

    Raises:
        NotReady: not in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    while missing := not_yet():
        if time.monotonic() > deadline:
            raise NotReady(f"Not ready after {READY_SECONDS} seconds: {missing}. See `docker compose ps` and `docker compose logs`.")
        time.sleep(0.3)


def not_yet() -> str:
    """Who does not answer; nothing when all do."""
    connection = HTTPConnection(*GATEWAY, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = json.loads(connection.getresponse().read())
    except (OSError, HTTPException, ValueError):
        return "the gateway"
    finally:
        connection.close()
    return ", ".join(name for name, state in answer["dependencies"].items() if state != "ok")


def curl_line(url: str, key: str, chain: dict[str, Any]) -> str:
    """A command that records a sale, and gives the same answer when it is run again."""
    sale = {
        "operation_id": f"demo-{uuid7()}",
        "store_id": chain["store_id"],
        "till_id": chain["till_id"],
        "sold_at": SystemClock().now().isoformat(timespec="seconds"),
        "currency": "CNY",
        "lines": [
            {"line_no": 1, "sku": "A100", "description": "Earphones", "quantity": "1", "unit_price": "199.90", "amount_minor": 19990},
        ],
        "tenders": [{"type": "cash", "amount_minor": 19990}],
    }
    body = shlex.quote(json.dumps(sale))
    return f'curl -sS {url}/v1/sales -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d {body}'


def welcome() -> None:
    """Seeds, waits, writes down and says."""
    chain = seeded()
    note({"url": "http://{}:{}".format(*GATEWAY)} | {name: chain[name] for name in ("till_key", "admin_key", "store_id", "till_id")})
    wait_until_ready()
    url = f"http://127.0.0.1:{os.environ['PORT']}"
    # A container's log is kept, and may be sent elsewhere: the keys themselves are not in it.
    print(f"Regulars is ready at {url} (pages at {url}/docs).")
    print(f"  the till's key           {SHOW} till")
    print(f"  the administrator's key  {SHOW} admin")
    print("  an operator's command    docker compose run --rm cli doctor")
    print("Record a sale:")
    print(curl_line(url, f"$({SHOW} till)", chain))


def main(arguments: list[str]) -> int:
    """Exit code 1 when the services are not there in time, or there is no key; 2 for other arguments."""
    match arguments:
        case []:
            try:
                welcome()
            except NotReady as reason:
                print(reason, file=sys.stderr)
                return 1
        case ["key", ("till" | "admin") as role]:
            key = noted().get(f"{role}_key")
            if key is None:
                print("There is no demo chain yet: run `docker compose up`.", file=sys.stderr)
                return 1
            print(key)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
