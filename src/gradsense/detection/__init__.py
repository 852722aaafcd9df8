"""Edge bundles: a trained model as one folder that needs no torch, and the detector over it."""

import os
from typing import TYPE_CHECKING

from gradsense.exports import export

# onnxruntime's wheels report usage to their maker unless told not to before they are loaded.
# A gateway's detector tells nobody anything.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from gradsense.detection.bundle import Manifest
    from gradsense.detection.detector import Detector, Verdict
    from gradsense.detection.reasons import Reason
else:
    export(__name__)

__all__ = ["Detector", "Manifest", "Reason", "Verdict"]
