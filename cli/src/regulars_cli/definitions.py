"""`regulars definitions export DIR`: programmes, stores and tills as files that people can read, fetched through the API.

programmes/demo/1.yaml …   each version, as `regulars programme apply` takes it
stores.yaml                the stores with their tills, in the words of `POST /v1/stores` and `POST /v1/stores/{id}/tills`
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import yaml

from regulars_cli import access
from regulars_cli.access import Access
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.arguments import guarded

_HEAD = "# Exported by `regulars definitions export`: a copy to read and to keep, not what the system runs from.\n"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `definitions` to the command."""
    parser = subparsers.add_parser("definitions", help="programmes, stores and tills as files")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    exported = actions.add_parser(
        "export", help="write them into a folder, each programme's versions as `regulars programme apply` takes them"
    )
    exported.add_argument("folder", metavar="DIR", type=Path)
    access.add_arguments(exported)
    exported.set_defaults(func=guarded, action=_export)


def _export(parsed: argparse.Namespace) -> int:
    files = export(access.find_access(parsed))
    try:
        for name, content in files.items():
            path = parsed.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise CannotBackUp(
            f"{parsed.folder} cannot be written to ({error.strerror}): name a folder, which need not be there yet."
        ) from None
    print(f"{len(files):,} files are in {parsed.folder}.")
    return 0


def export(access: Access) -> dict[str, bytes]:
    """The files, by their paths. Raises CannotBackUp when the gateway does not answer or refuses."""
    files: dict[str, bytes] = {}
    with httpx.Client(base_url=access.url, headers={"Authorization": f"Bearer {access.admin_key}"}, timeout=30, trust_env=False) as http:
        stores = []
        for store in _all(http, "/v1/stores"):
            tills = [{name: till[name] for name in ("id", "code", "name")} for till in _all(http, f"/v1/stores/{store['id']}/tills")]
            stores.append({name: value for name, value in store.items() if name != "created_at"} | {"tills": tills})
        files["stores.yaml"] = _written({"stores": stores})
        for programme_id in sorted({str(store["programme_id"]) for store in stores}):
            for version in _get(http, f"/v1/programmes/{quote(programme_id, safe='')}")["versions"]:
                files[f"programmes/{programme_id}/{version['version']}.yaml"] = _written(version["definition"])
    return files


def _all(http: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        page = _get(http, f"{path}?{urlencode({'limit': 500, **({'cursor': cursor} if cursor else {})})}")
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _get(http: httpx.Client, path: str) -> dict[str, Any]:
    try:
        answer = http.get(path)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CannotBackUp(f"The gateway at {http.base_url} does not answer ({type(error).__name__}): is the system up?") from error
    if not answer.is_success:
        raise CannotBackUp(f"The gateway refused {path.partition('?')[0]} ({answer.status_code}): is the key an administrator's?")
    found: dict[str, Any] = answer.json()
    return found


def _written(document: object) -> bytes:
    return (_HEAD + yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=120)).encode()
