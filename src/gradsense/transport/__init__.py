"""Who carries messages between clients and coordinator: today in one process, in virtual time."""

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
