"""A device's learning half: labels flows, trains, uploads updates, adopts global models."""
