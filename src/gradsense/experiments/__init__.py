"""Compare strategies (Table III), evaluate models, write reports."""
