"""The fleet's Mosquitto on this machine: signalled when its access files have changed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

#: In the broker's folder, as ``mosquitto.conf`` has it.
PID_FILE = "mosquitto.pid"


def reload(fleet: Path) -> bool:
    """Have the broker read its access files and its list of revoked certificates again.

    Returns:
        whether a Mosquitto of this fleet runs here and may be signalled. Another broker, or one
        on another machine, is the operator's to reload.
    """
    try:
        pid = int((fleet / "broker" / PID_FILE).read_text())
        # The file may be of a broker that is gone, and its number somebody else's by now.
        if Path(f"/proc/{pid}/comm").read_text().strip() != "mosquitto":
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True
