"""A gateway's detector: its speed and memory, and what it does on networks it never saw."""
