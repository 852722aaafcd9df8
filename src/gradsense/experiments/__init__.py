"""Compare algorithms (Table III), evaluate models, write reports."""
