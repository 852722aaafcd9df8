"""A fleet in virtual time: the same state machines as over MQTT, on one machine."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.simulation.devices import DeviceProfile, Meter, assign
    from gradsense.simulation.simulator import Faults, Simulator
else:
    export(__name__)

__all__ = ["DeviceProfile", "Faults", "Meter", "Simulator", "assign"]
