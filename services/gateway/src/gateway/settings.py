"""The gateway's settings, from the environment."""

from dataclasses import dataclass
from pathlib import Path

from kit.settings import env


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """What `migrate` and the commands that only need the database read."""

    database_url: str = env("GATEWAY_DATABASE_URL")
    log_level: str = env("LOG_LEVEL", "INFO")


@dataclass(frozen=True, slots=True)
class SeedSettings(DatabaseSettings):
    """What `seed-demo` reads: it changes API keys only of an installation whose keys these are."""

    fingerprint_key_file: Path = env("FINGERPRINT_KEY_FILE")


@dataclass(frozen=True, slots=True)
class Settings(DatabaseSettings):
    """What `serve` reads."""

    pool_size: int = env("GATEWAY_POOL_SIZE", "4")
    host: str = env("GATEWAY_HOST", "127.0.0.1")
    port: int = env("GATEWAY_PORT", "8600")
    # After about so long a client's connection ends with an answer, so that replicas that came later get requests; 0: it lasts.
    connection_seconds: int = env("GATEWAY_CONNECTION_SECONDS", "0")
    member_address: str = env("MEMBER_ADDRESS", "127.0.0.1:8601")
    reporting_address: str = env("REPORTING_ADDRESS", "127.0.0.1:8603")
    internal_token_private_key_file: Path = env("INTERNAL_TOKEN_PRIVATE_KEY_FILE")
    fingerprint_key_file: Path = env("FINGERPRINT_KEY_FILE")
    # The programme of a sign-up and of points calls that name none.
    default_programme_id: str = env("DEFAULT_PROGRAMME_ID", "demo")
    # Groups of writes under way at once; each is one transaction of the member service.
    lanes: int = env("GATEWAY_LANES", "2")
    lane_capacity: int = env("GATEWAY_LANE_CAPACITY", "4096")
    group_size: int = env("GATEWAY_GROUP_SIZE", "256")
    import_lanes: int = env("GATEWAY_IMPORT_LANES", "2")
    write_deadline_seconds: int = env("GATEWAY_WRITE_DEADLINE_SECONDS", "10")
