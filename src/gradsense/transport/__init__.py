"""Messages between devices and coordinator: MQTT 5, signed, in chunks (docs/protocol.md)."""
