"""gradsense: federated small language models that guard IoT fleets.

The folders, from the top of the house to its foundation: ``cli``, ``experiments``,
``engines``, ``federation``, ``learning``, ``models``, ``prompts``, ``telemetry``.
A module imports only from its own folder and from those below it.
"""

__version__ = "0.1.0"
