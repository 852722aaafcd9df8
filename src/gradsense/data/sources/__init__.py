"""Formats of logs, one file each, and how logs are read, stored ones and those that grow."""
