"""The coordinator's process: its runs, their journals and snapshots, their status."""
