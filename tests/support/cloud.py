"""A coordinator whose events are method calls, so that a test reads as a story."""

from __future__ import annotations

from collections.abc import Iterable

from gradsense.federation.coordinator import Coordinator
from gradsense.federation.events import (
    Arrived,
    Broadcast,
    Event,
    Joined,
    Left,
    Refuse,
    Send,
    Ticked,
    TurnedAway,
)
from gradsense.federation.update import GlobalModel, Update


class Cloud(Coordinator):
    """Each call lets an event happen and gives the new global model, if it brought one about."""

    def _happen(self, event: Event) -> GlobalModel | None:
        model = None
        for effect in self.handle(event):
            match effect:
                case Refuse():
                    raise effect.refusal
                case Broadcast():
                    model = effect.model
        return model

    def enrol(self, clients: Iterable[str]) -> GlobalModel:
        """These are there at the start; version 0."""
        names = list(clients)
        self.min_clients = len(names)
        models = [self._happen(Joined(name)) for name in names]
        assert models[:-1] == [None] * (len(names) - 1)
        assert models[-1] is not None
        return models[-1]

    def join(self, client: str) -> GlobalModel:
        """A client comes, and gets the current model."""
        (effect,) = self.handle(Joined(client))
        assert isinstance(effect, Send)
        return effect.model

    def leave(self, client: str) -> GlobalModel | None:
        return self._happen(Left(client))

    def receive(self, update: Update, now: float) -> GlobalModel | None:
        """An update arrives; its refusal is raised."""
        return self._happen(Arrived(update, now))

    def excuse(self, client: str) -> GlobalModel | None:
        """An update of this client was refused before anybody could read it."""
        return self._happen(TurnedAway(client, "bad-body"))

    def tick(self, now: float) -> GlobalModel | None:
        return self._happen(Ticked(now))
