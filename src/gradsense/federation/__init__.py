"""Pure rules of federated learning: no input or output, no clock, no threads.

**An algorithm = local step × trigger × pool × rule**, owned by one file of ``algorithms/``.
``client`` and ``coordinator`` are the two state machines that an engine drives: the simulator in
virtual time, the agent and the coordinator process over MQTT. Tensors are numpy float32 arrays,
never changed in place, so that a thousand clients may share one global model.
"""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.federation.client import Client
    from gradsense.federation.coordinator import Coordinator
    from gradsense.federation.update import GlobalModel, Update
else:
    export(__name__)

__all__ = ["Client", "Coordinator", "GlobalModel", "Update"]
