"""Published detection rules as peers of the model: each is one file, found by being there."""
