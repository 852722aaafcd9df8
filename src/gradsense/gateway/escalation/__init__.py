"""A second opinion from a larger model, within budgets."""
