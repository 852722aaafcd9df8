"""What devices say: Zeek flows, their labels, cleaning, splits, partitions, synthetic traffic."""
