"""Heads on a language model's last states, and the novelty score beside them."""
