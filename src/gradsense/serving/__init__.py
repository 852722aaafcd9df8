"""A larger model behind HTTP, which gateways ask about their unsure verdicts."""
