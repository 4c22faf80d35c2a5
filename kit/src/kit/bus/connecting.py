"""Which bus a process uses: its backend follows from the form of `BUS_URL`, and no other code asks."""

from dataclasses import dataclass

from kit.bus.interface import Bus
from kit.settings import SettingsInvalid, env

POSTGRES_SCHEMES = ("postgresql://", "postgresql+asyncpg://", "postgres://")
KAFKA_SCHEME = "kafka://"


@dataclass(frozen=True, slots=True)
class BusSettings:
    """`bus_url` is `postgresql://…/bus`, or `kafka://host:port,host:port` with what the brokers ask of a client; empty: not asked."""

    bus_url: str = env("BUS_URL")
    kafka_security_protocol: str = env("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    kafka_sasl_mechanism: str = env("KAFKA_SASL_MECHANISM", "")
    kafka_sasl_username: str = env("KAFKA_SASL_USERNAME", "")
    kafka_sasl_password_file: str = env("KAFKA_SASL_PASSWORD_FILE", "")
    kafka_ssl_ca_file: str = env("KAFKA_SSL_CA_FILE", "")
    kafka_ssl_certificate_file: str = env("KAFKA_SSL_CERTIFICATE_FILE", "")
    kafka_ssl_key_file: str = env("KAFKA_SSL_KEY_FILE", "")


def is_over_postgres(settings: BusSettings) -> bool:
    """Whether the bus is a database, and not Kafka.

    Raises:
        SettingsInvalid: no backend has such a URL.
    """
    if settings.bus_url.startswith((*POSTGRES_SCHEMES, KAFKA_SCHEME)):
        return not settings.bus_url.startswith(KAFKA_SCHEME)
    raise SettingsInvalid(["BUS_URL must begin with postgresql:// or kafka://."])


def connect(settings: BusSettings, *, client_name: str) -> Bus:
    """The bus of the settings, not yet connected. `client_name` is what operators see as the owner of a partition.

    Raises:
        SettingsInvalid: no backend has such a URL.
    """
    # A process loads the driver of the backend that it uses, and only that.
    if is_over_postgres(settings):
        from kit.bus.postgres import PostgresBus  # noqa: PLC0415

        return PostgresBus(settings.bus_url, client_name)
    from kit.bus.kafka import KafkaBus  # noqa: PLC0415

    return KafkaBus(settings, client_name)
