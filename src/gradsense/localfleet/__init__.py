"""A whole fleet on one machine: broker, coordinator and devices as real processes."""
