"""Records to text within a token budget."""
