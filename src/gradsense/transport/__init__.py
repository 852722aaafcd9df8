"""Who carries messages between clients and coordinator: today in one process, in virtual time."""
