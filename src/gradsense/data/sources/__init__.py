"""Logs that grow: followed through rotation and restarts, and turned into flows in context."""
