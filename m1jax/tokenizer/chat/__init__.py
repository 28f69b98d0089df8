"""Chat formats as data, chat templates that come with models, and conversations as ids of a tokenizer."""

from m1jax.tokenizer.chat.chats import Chat, FormatChat, Message, Part, fingerprint, named, of
from m1jax.tokenizer.chat.formats import BAICHUAN_M1, CHATML, FORMATS, ChatFormat, Own, Special, Turn

__all__ = [
    "BAICHUAN_M1", "CHATML", "FORMATS",
    "Chat", "ChatFormat", "FormatChat", "Message", "Own", "Part", "Special", "Turn", "fingerprint", "named", "of",
]  # fmt: skip
