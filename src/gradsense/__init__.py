"""gradsense: federated small language models that guard IoT fleets.

What a package exports by name is public; ``docs/compatibility.md`` says what that promises. The
packages stand above one another, and a module imports only from its own package and from those
below it:

    cli  experiments  localfleet                    commands, comparisons, a fleet on one machine
    gateway  agent  coordinator  fleet  serving     the processes of a deployment
    simulation  transport                           who carries updates and models
    detection                                       a trained model that needs no torch
    federation  learning  models                    algorithms, local training, language models
    prompts  tasks  data  storage                   records and their words, logs, files

>>> import gradsense
>>> gradsense.Detector.__name__
'Detector'
"""

from gradsense.exports import TYPE_CHECKING, export

__version__ = "0.1.0"

__all__ = [
    "Algorithm", "Client", "Coordinator", "Detector", "GradsenseError", "InputError", "Learner",
    "Simulator", "Task", "Watch", "__version__",
]  # fmt: skip
export(__name__)
if TYPE_CHECKING:
    from gradsense.detection.detector import Detector
    from gradsense.errors import GradsenseError, InputError
    from gradsense.federation.algorithm import Algorithm
    from gradsense.federation.client import Client
    from gradsense.federation.coordinator import Coordinator
    from gradsense.gateway.watch import Watch
    from gradsense.learning.learner import Learner
    from gradsense.simulation.simulator import Simulator
    from gradsense.tasks.task import Task
