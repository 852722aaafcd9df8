"""Learning together: what each part brings, who gains by it, and what the engine costs."""
