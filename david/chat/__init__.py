"""Models that write: generation, conversations, notebook widgets."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.chat.conversation import Chat
    from david.chat.generation import Sampling

__all__ = ["Chat", "Sampling"]

__getattr__, __dir__ = attach(__name__, {"Chat": "conversation", "Sampling": "generation"})
