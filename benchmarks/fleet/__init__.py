"""A whole fleet on one machine: a thousand devices, and faults of the network."""
