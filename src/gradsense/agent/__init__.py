"""The training agent of a device: what it remembers, what it sends, what it takes."""
