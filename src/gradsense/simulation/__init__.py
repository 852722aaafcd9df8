"""A fleet in virtual time: the same state machines as over MQTT, on one machine."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["DeviceProfile", "Faults", "Meter", "Simulator", "assign"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.simulation.cost import Meter
    from gradsense.simulation.devices import DeviceProfile, assign
    from gradsense.simulation.simulator import Faults, Simulator
