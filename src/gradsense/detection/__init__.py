"""Edge bundles: a trained model as one folder that needs no torch, and the detector over it."""
