"""Labelled captures: found, inspected, split and assigned to clients."""
