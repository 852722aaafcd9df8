"""Pure rules of federated learning: no input or output, no clock, no threads.

**A strategy = trigger × pool × aggregator.** ``strategies.STRATEGIES`` is the table; ``trigger``,
``pool`` and ``aggregate`` hold its columns; ``client`` and ``coordinator`` are the two state
machines that an engine drives. Tensors are numpy float32 arrays, never changed in place, so that
a thousand clients may share one global model.
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
