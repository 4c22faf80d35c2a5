"""`helm test`: asks the gateway, through its Service, whether it and those it calls are well, and whether it turns strangers away."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["GATEWAY_URL"]
WAIT_SECONDS = 120


def main() -> int:
    """Every check in turn; the first that does not hold in time is named."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    for name, check in (("ready, and what it calls answers", ready), ("without a key: 401", stranger)):
        while (said := check()) and time.monotonic() < give_up_at:
            time.sleep(2)
        print(f"{name}: {said or 'ok'}", flush=True)
        if said:
            return 1
    return 0


def ready() -> str:
    """What is not as it should be; empty: nothing."""
    status, body = get("/readyz")
    if status != 200:
        return f"{status} {body}"
    away = [name for name, state in json.loads(body)["dependencies"].items() if state != "ok"]
    return f"away: {', '.join(away)}" if away else ""


def stranger() -> str:
    """Likewise."""
    status, body = get("/v1/stores")
    return "" if status == 401 else f"{status} {body}"


def get(path: str) -> tuple[int, str]:
    """Status and body; 0 where there was no answer."""
    try:
        with urllib.request.urlopen(URL + path, timeout=10) as answer:  # noqa: S310  # the address is the chart's
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
    except OSError as error:
        return 0, f"no answer ({error})"


if __name__ == "__main__":
    sys.exit(main())
