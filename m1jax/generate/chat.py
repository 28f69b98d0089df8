"""The chat format of Baichuan-M1 (reference code): each turn is its role's token and its text, nothing between.

`<B_SYS>system<C_Q>user<C_A>answer<C_Q>…`, with a default system turn first where none is given.
"""

from collections.abc import Iterator, Mapping, Sequence

from m1jax.errors import UserError
from m1jax.generate.engine import LanguageModel
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import Generation
from m1jax.generate.text import Answer, answers
from m1jax.tokenizer import DEFAULT_SYSTEM, Tokenizer

Message = Mapping[str, str]
"""{"role": "system" or "user" or "assistant" or another of the tokenizer's roles, "content": its text}."""


def encode(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
    """Ids of a chat, as `apply_chat_template` of an export's AutoTokenizer gives them.

    An answer that is the last message is closed by eos, as a document in training is; none stands between turns. With
    `add_generation_prompt` the assistant's token is last instead, and what the model then writes is the answer. Role
    tokens inside a message's text are text: only the message's role puts one. Raises UserError for a tokenizer without
    role tokens, a role it does not know and a content that is no text.
    """
    roles = roles_of(tokenizer)
    ids: list[int] = []
    if not messages or messages[0].get("role") != "system":
        ids += turn(tokenizer, "system", DEFAULT_SYSTEM)
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in roles or not isinstance(content, str):
            raise UserError(
                f"message {number} has role {role!r} and a content of type {type(content).__name__}: give a text and "
                f"one of the roles {', '.join(roles)}."
            )
        ids += turn(tokenizer, role, content)
    if add_generation_prompt:
        return [*ids, roles["assistant"]]
    closed = bool(messages) and messages[-1]["role"] == "assistant"
    return [*ids, tokenizer.eos_id] if closed else ids


def turn(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
    """Ids of one turn: the role's token, then the text's."""
    return [roles_of(tokenizer)[role], *tokenizer.encode(text)]


def ends(tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: eos, or any role's token, which begins a turn of somebody else."""
    return [tokenizer.eos_id, *roles_of(tokenizer).values()]


def roles_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Id of each role's token; raises UserError where the vocabulary has none."""
    if not tokenizer.roles:
        raise UserError(
            "the model's tokenizer has no role tokens (<B_SYS>, <C_Q>, <C_A>), so it knows no chat: use `m1 generate`, "
            "or a model whose tokenizer has them."
        )
    return tokenizer.roles


class Conversation:
    """A session that speaks the chat format; each turn computes only what is new."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, system: str = DEFAULT_SYSTEM):
        """Raises UserError where the tokenizer has no role tokens."""
        self._model, self._tokenizer = model, tokenizer
        self._opening = turn(tokenizer, "system", system)
        self._ends = ends(tokenizer)
        self._session = model.session()

    @property
    def tokens(self) -> list[int]:
        """Everything said so far, with its role tokens."""
        return self._session.tokens[0]

    def ask(self, text: str, max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[list[Answer]]:
        """The answer as it comes (`m1jax.generate.text.answers`).

        Raises UserError, and leaves the conversation as it was, where the context has no room for an answer.
        """
        opening = [] if self.tokens else self._opening
        new = [*opening, *turn(self._tokenizer, "user", text), self._tokenizer.roles["assistant"]]
        room = self._model.config.max_positions - len(self.tokens) - len(new)
        if room < 1:
            raise UserError(
                f"the context is full: {len(self.tokens)} tokens and this turn's {len(new)} leave no room for an answer"
                f" in {self._model.config.max_positions} positions; /reset starts anew."
            )
        self._session.extend(new)
        generation = Generation(self._session, min(max_new_tokens, room), sampling, seed, self._ends)
        return answers(generation, self._tokenizer)
