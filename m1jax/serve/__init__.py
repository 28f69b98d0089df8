"""A server of the OpenAI protocol over `m1jax.generate`: the protocol, its limits, and a chat page."""

from m1jax.serve.app import make
from m1jax.serve.served import Served, Settings

__all__ = ["Served", "Settings", "make"]
