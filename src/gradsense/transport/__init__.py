"""Messages between devices and coordinator: MQTT 5, signed, in chunks (docs/protocol.md)."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.transport.connection import Arrival, Link
    from gradsense.transport.identity import Identity
    from gradsense.transport.messages import Message
    from gradsense.transport.protocol import MessageHeader, Topic
else:
    export(__name__)

__all__ = ["Arrival", "Identity", "Link", "Message", "MessageHeader", "Topic"]
