"""Kafka's own jars, downloaded once from Maven Central into the user's cache: `python -m regulars_cli.up.kafka_jars`.

A process of its own, so that the supervisor need not keep a resolver and a web client in memory.
"""

import fcntl
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "4.1.2"
# The broker, and what lets it say on standard error what is wrong: it brings no logger of its own.
_COORDINATES = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.slf4j:slf4j-simple:1.7.36")


def folder() -> Path:
    """Where the jars are once `download` has run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regulars" / f"kafka-{VERSION}"


def download() -> None:
    """Fills `folder`, which appears whole or not at all, also when several processes want it at once."""
    folder().parent.mkdir(parents=True, exist_ok=True)
    with folder().with_name(f"{folder().name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder().exists():
            return
        fresh = Path(tempfile.mkdtemp(prefix="kafka-", dir=folder().parent))
        try:
            for jar in _resolved():
                shutil.copyfile(jar, fresh / jar.name)
            fresh.chmod(0o755)
            fresh.rename(folder())
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _resolved() -> list[Path]:
    """The jars of Kafka and of everything that it needs at run time, in the user's Maven repository."""
    from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415 - large, and needed once

    maven = MavenContext(resolver=PythonResolver(), timeout=60)
    wanted, needed = maven.resolver.resolve([maven.create_dependency(coordinate) for coordinate in _COORDINATES])
    artifacts = [dependency.artifact for dependency in (*wanted, *needed) if dependency.scope in (None, "compile", "runtime")]
    jars = []
    for artifact in artifacts:
        if not zipfile.is_zipfile(artifact.resolve()):
            # A download that was interrupted leaves a part, which counts as there.
            artifact.resolve().unlink()
        jars.append(artifact.resolve())
    return jars


def main() -> int:
    """Exit code 1, with one sentence, when the jars cannot be had."""
    try:
        download()
    except Exception as error:  # noqa: BLE001 - the resolver and its web client raise many kinds
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
