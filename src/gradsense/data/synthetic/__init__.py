"""Synthetic traffic: an IoT fleet's flows from a seed."""
