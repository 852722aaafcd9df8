"""What stands on a language model's last states: heads, and the novelty score beside them."""
