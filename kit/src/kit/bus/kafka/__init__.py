"""The bus over Kafka, with aiokafka. Every topic's messages are CloudEvents in binary mode (`cloud_events`)."""

from kit.bus.kafka.bus import KafkaBus

__all__ = ["KafkaBus"]
