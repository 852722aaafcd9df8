"""Records to text within a token budget: templates over the words of a task."""
