"""As much of an API server as `lookup` of a chart asks for: which kinds there are, single objects, and all of a kind."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KINDS = {
    "/api/v1": {"configmaps": "ConfigMap", "secrets": "Secret", "serviceaccounts": "ServiceAccount"},
    "/apis/apps/v1": {"statefulsets": "StatefulSet"},
    "/apis/batch/v1": {"jobs": "Job"},
}

NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


@contextmanager
def api_server(namespace: str, objects: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[str]:
    """The address of one whose namespace has these and nothing else, by kind and name."""
    answers: dict[str, Mapping[str, Any]] = {}
    for path, kinds in KINDS.items():
        version = path.removeprefix("/apis/").removeprefix("/api/")
        resources = [{"name": name, "kind": kind, "namespaced": True, "verbs": ["get", "list"]} for name, kind in kinds.items()]
        answers[path] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
        for plural, kind in kinds.items():
            items = []
            for (of_kind, name), given in objects.items():
                if of_kind == kind:
                    metadata = {"name": name, "namespace": namespace, "uid": f"uid-of-{name}", **given.get("metadata", {})}
                    found = {"apiVersion": version, "kind": kind, **given, "metadata": metadata}
                    answers[f"{path}/namespaces/{namespace}/{plural}/{name}"] = found
                    items.append(found)
            answers[f"{path}/namespaces/{namespace}/{plural}"] = {"apiVersion": version, "kind": f"{kind}List", "items": items}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(found or NOT_FOUND).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
