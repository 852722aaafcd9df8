"""One run's durable coordinator: what it must not forget, and what it answers."""
