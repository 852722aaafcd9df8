"""Traffic that never was: an IoT fleet's flows from a seed."""
