"""A fleet in virtual time: the same state machines as over MQTT, on one machine."""
