"""The templates of flows: each one file with a ``WORDING``, found by being there."""
