"""Pure rules of federated learning: no input or output, no clock, no threads.

**An algorithm = local step × trigger × pool × rule**, owned by one file of ``algorithms/``.
``client`` and ``coordinator`` are the two state machines that an engine drives: the simulator in
virtual time, the agent and the coordinator process over MQTT. Tensors are numpy float32 arrays,
never changed in place, so that a thousand clients may share one global model.
"""

from gradsense.exports import TYPE_CHECKING, export

__all__ = [
    "Algorithm", "AllInvited", "AnyOf", "Arrived", "Broadcast", "Client", "Codec",
    "Coordinator", "Count", "Decision", "DeltaRule", "EveryRound", "FedAvg", "GlobalModel",
    "Gradient", "Joined", "Left", "LocalState", "Outgoing", "Performance", "Plan", "Pool",
    "Pooled", "PooledUpdate", "Quorum", "Refuse", "Rule", "Send", "Sensed", "Silence", "Ticked",
    "Transform", "Trigger", "TurnedAway", "Unexplained", "Update", "WakeAt", "WeightedSum",
    "get_algorithm", "part",
]  # fmt: skip
export(__name__)
if TYPE_CHECKING:
    from gradsense.federation.algorithm import Algorithm, LocalState, Outgoing, Plan, get_algorithm
    from gradsense.federation.algorithms.fedavg import FedAvg
    from gradsense.federation.client import Client
    from gradsense.federation.coordinator import Coordinator
    from gradsense.federation.events import (
        Arrived,
        Broadcast,
        Joined,
        Left,
        Refuse,
        Send,
        Ticked,
        TurnedAway,
        WakeAt,
    )
    from gradsense.federation.parts import part
    from gradsense.federation.pools import AllInvited, Count, Pool, Pooled, PooledUpdate, Quorum
    from gradsense.federation.rules.rule import DeltaRule, Rule, WeightedSum
    from gradsense.federation.transforms.transform import Codec, Transform
    from gradsense.federation.triggers import (
        AnyOf,
        Decision,
        EveryRound,
        Gradient,
        Performance,
        Sensed,
        Silence,
        Trigger,
        Unexplained,
    )
    from gradsense.federation.update import GlobalModel, Update
