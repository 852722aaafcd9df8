"""What rests on a disk: whole folders, SQLite files, checkpoints."""
