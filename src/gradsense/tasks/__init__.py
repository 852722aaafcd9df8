"""What a record is, its classes and its words: one folder a task, found by being there."""
