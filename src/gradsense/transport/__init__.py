"""Messages between devices and coordinator: MQTT 5, signed, in chunks (docs/protocol.md)."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["Arrival", "Identity", "Link", "Message", "MessageHeader", "Topic"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.transport.connection import Arrival, Link
    from gradsense.transport.identity import Identity
    from gradsense.transport.messages import Message
    from gradsense.transport.protocol import MessageHeader, Topic
