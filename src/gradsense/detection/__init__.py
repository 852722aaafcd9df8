"""The edge bundle, a trained model as one folder that needs no torch, and the detector over it."""

import os

# onnxruntime's wheels send usage reports to their maker unless this is set before the import.
# A gateway's detector reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
