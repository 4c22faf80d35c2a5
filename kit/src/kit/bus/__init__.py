"""The bus: facts travel from the service that owns them to those that act on them, never lost, their effects never doubled.

A service writes events to its outbox in the transaction that made them true (`kit.outbox`); its relay publishes them
(`kit.bus.relay`); consumers read them in batches (`kit.bus.consuming`) and write `(consumer, event_id)` with the effect
(`kit.bus.inbox`). One interface (`kit.bus.interface`) has two backends that behave the same: `kit.bus.kafka` and `kit.bus.postgres`.
"""
