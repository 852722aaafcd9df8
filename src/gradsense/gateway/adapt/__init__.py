"""What a gateway learns of its own network: habits, drift, operators' words."""
