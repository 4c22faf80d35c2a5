"""A broker that answers nobody who does not say who he is."""

import contextlib
import socket
from collections.abc import Mapping

from regulars_cli.up.kafka import LocalKafka


class GuardedKafka(LocalKafka):
    """One whose being ready can only be seen from its listening."""

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self.bootstrap.rpartition(":")[2])), timeout=2):
            return True
        return False


def signing_in(protocol: str, passwords: Mapping[str, str]) -> dict[str, str]:
    """The settings of a broker that asks for a name and its password; `broker` is its own."""
    users = " ".join(f'user_{name}="{password}"' for name, password in passwords.items())
    return {
        "listener.security.protocol.map": f"PLAINTEXT:{protocol},CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required username="broker" password="{passwords["broker"]}" {users};'
        ),
    }
