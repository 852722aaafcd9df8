"""Storage: whole files and folders, SQLite files, checkpoints."""
