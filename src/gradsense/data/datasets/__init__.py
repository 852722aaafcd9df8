"""Labelled captures: found, cleaned, split and dealt out to clients."""
