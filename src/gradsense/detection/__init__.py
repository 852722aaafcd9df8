"""Edge bundles: a trained model as one folder that needs no torch, and the detector over it."""

import os

# onnxruntime's wheels report usage to their maker unless told not to before they are loaded.
# A gateway's detector tells nobody anything.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
