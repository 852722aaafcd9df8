"""The edge bundle, a trained model as one folder that needs no torch, and the detector over it."""

import os

from gradsense.exports import TYPE_CHECKING, export

# onnxruntime's wheels send usage reports to their maker unless this is set before the import.
# A gateway's detector reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Detector", "Manifest", "Reason", "Verdict"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.detection.bundle import Manifest
    from gradsense.detection.detector import Detector, Reason, Verdict
