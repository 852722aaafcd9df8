"""What rests on a disk: whole files and folders, SQLite files, checkpoints."""
