"""One device's own training, and how well a model does."""
