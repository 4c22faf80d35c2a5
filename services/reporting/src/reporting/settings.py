"""The reporting service's settings, from the environment."""

from dataclasses import dataclass
from pathlib import Path

from kit.settings import env


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Where the facts are: a ClickHouse server, or a folder that the engine in this process opens alone."""

    clickhouse_url: str = env("CLICKHOUSE_URL", "")
    # In place of the password in the URL.
    clickhouse_password_file: str = env("CLICKHOUSE_PASSWORD_FILE", "")
    data_dir: str = env("REPORTING_DATA_DIR", "")
    # Reports worked out at once; each has a connection of its own.
    readers: int = env("REPORTING_READERS", "2")
    log_level: str = env("LOG_LEVEL", "INFO")


@dataclass(frozen=True, slots=True)
class Settings(StorageSettings):
    """What serving needs besides."""

    listen: str = env("REPORTING_LISTEN", "127.0.0.1:8603")
    # So that replicas that came later get calls; 0: connections last.
    max_connection_age_seconds: int = env("RPC_MAX_CONNECTION_AGE_SECONDS", "0")
    member_address: str = env("MEMBER_ADDRESS", "127.0.0.1:8601")
    token_public_key_file: Path = env("INTERNAL_TOKEN_PUBLIC_KEY_FILE")
