"""A conversation with a model on one warm cache: each turn computes only what is new."""

from collections.abc import Iterator

from m1jax.errors import UserError
from m1jax.generate.engine import LanguageModel
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import Generation
from m1jax.generate.text import Answer, answers
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer.chat import Chat, Message


class Conversation:
    """A session that speaks a chat format."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, chat: Chat, system: str | None = None):
        """`chat` is `m1jax.tokenizer.chat.of(tokenizer)`; without `system` the format's own system turn is first."""
        self._model, self._tokenizer, self._chat = model, tokenizer, chat
        self._ends = [*dict.fromkeys([*chat.ends, *model.eos_ids])]
        self._messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._session = model.session()
        self._asked: int | None = None
        """Length of the context when the newest answer began."""

    @property
    def tokens(self) -> list[int]:
        """Everything said so far, with the marks around it; the token that ended an answer comes with the next turn."""
        return self._session.tokens[0]

    @property
    def messages(self) -> list[Message]:
        """Everything said so far; the content of an answer is its ids."""
        if self._asked is None:
            return list(self._messages)
        return [*self._messages, {"role": "assistant", "content": self.tokens[self._asked :]}]

    def ask(self, text: str, max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[list[Answer]]:
        """The answer as it comes (`m1jax.generate.text.answers`).

        Raises UserError, and leaves the conversation as it was, where the context has no room for an answer or the
        model's own template refuses the messages.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._chat.encode(messages, add_generation_prompt=True)
        room = self._model.config.max_positions - len(ids)
        if room < 1:
            raise UserError(
                f"the context is full: the conversation takes {len(ids)} tokens and leaves no room for an answer in "
                f"{self._model.config.max_positions} positions; /reset begins a new one."
            )
        session, known = self._session, len(self.tokens)
        if ids[:known] != self.tokens:
            # A template may write earlier turns differently later: the context is then read again from its beginning.
            session, known = self._model.session(), 0
        session.extend(ids[known:])
        self._session, self._messages, self._asked = session, messages, len(ids)
        generation = Generation(session, min(max_new_tokens, room), sampling, seed, self._ends)
        return answers(generation, self._tokenizer)
