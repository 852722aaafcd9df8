"""What a gateway learns from its own network: device baselines and drift."""
