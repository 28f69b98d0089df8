"""The bodies of /v1/completions and /v1/chat/completions, checked and turned into requests for the engine."""

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m1jax.errors import UserError
from m1jax.generate.requests import END_IDS, Request
from m1jax.generate.sampling import Sampling
from m1jax.generate.steering import ALTERNATIVES
from m1jax.serve.body import Body, is_integer, strings, wrong
from m1jax.serve.errors import RequestError
from m1jax.serve.served import Served

_MOST_CHOICES, _MOST_STOPS, _LONGEST_STOP, _MOST_BIASES = 128, 16, 1000, 1024
_DEFAULT_TOKENS = 16
"""New tokens of a completion that does not say how many: OpenAI's default."""
_ROLES = ("system", "developer", "user", "assistant")
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")


@dataclass(frozen=True)
class Asked:
    """What a body asks for: a request for every choice, prompt by prompt."""

    requests: list[Request]
    choices_per_prompt: int
    stop: Sequence[str]
    stream: bool
    include_usage: bool
    logprobs: bool
    echo: bool = False


def completion(body: Body, served: Served) -> Asked:
    """What a body of /v1/completions asks for; raises RequestError where something is wrong."""
    _model(body, served)
    prompts = _prompts(body.take("prompt"), served)
    limit = _limit(body, served)
    echo, logprobs = body.flag("echo"), body.integer("logprobs", 0, ALTERNATIVES)
    n = body.integer("n", 1, _MOST_CHOICES) or 1
    if (best := body.integer("best_of", 1, _MOST_CHOICES)) is not None and best != n:
        raise RequestError(400, "best_of is not supported: leave it out, or give it the value of n.", "best_of")
    body.refuse({"suffix": "this model continues texts, it does not fill gaps."})
    common = _Common.of(body, served, served.end_ids)
    body.end()
    limit = _DEFAULT_TOKENS if limit is None else limit
    score = echo and logprobs is not None
    requests = common.requests(prompts, n, [limit] * len(prompts), logprobs or 0, score)
    return Asked(requests, n, common.stop, common.stream, common.include_usage, logprobs is not None, echo)


def chat(body: Body, served: Served) -> Asked:
    """What a body of /v1/chat/completions asks for; raises RequestError where something is wrong."""
    _model(body, served)
    messages = body.take("messages")
    limit = _limit(body, served)
    logprobs = body.flag("logprobs")
    beside = body.integer("top_logprobs", 0, ALTERNATIVES)
    if beside and not logprobs:
        raise RequestError(400, "top_logprobs needs logprobs: set it to true.", "top_logprobs")
    n = body.integer("n", 1, _MOST_CHOICES) or 1
    _refuse_of_chats(body)
    schema = _schema(body.take("response_format"))
    common = _Common.of(body, served, served.chat_ends)
    body.end()
    ids = conversation(messages, served)
    room = served.engine.room.context - len(ids)
    if room < 1:
        raise _too_long(len(ids), served)
    requests = common.requests(
        [ids], n, [min(room, served.settings.default_tokens) if limit is None else limit], beside or 0, False
    )
    if schema is not None:
        first = served.grammars.constraint(schema, common.end_ids)
        requests = [dataclasses.replace(request, constraint=first.copy()) for request in requests]
    return Asked(requests, n, common.stop, common.stream, common.include_usage, logprobs)


def conversation(messages: Any, served: Served) -> list[int]:
    """The ids of a conversation up to where the next answer begins; raises RequestError where it is none."""
    checked = _messages(messages)
    if served.chat is None:
        raise RequestError(400, f"this model has no chat format ({served.no_chat}): use /v1/completions.")
    try:
        return served.chat.encode(checked, add_generation_prompt=True)
    except UserError as error:
        raise RequestError(400, str(error), "messages") from error


def _refuse_of_chats(body: Body) -> None:
    no_tools = "this server answers in text; say in a message what is wanted."
    if body.take("tool_choice") in (None, "none", "auto"):
        body.ignore("parallel_tool_calls")
    else:
        raise RequestError(400, f"tool_choice is not supported: {no_tools}", "tool_choice", "unsupported_parameter")
    body.refuse({"tools": no_tools, "functions": no_tools, "function_call": no_tools})
    body.refuse(dict.fromkeys(("audio", "web_search_options"), "this server reads and writes text only."))
    body.refuse({"prediction": "leave it out."})
    if (modalities := body.take("modalities")) not in (None, ["text"]):
        raise wrong("modalities", 'must be ["text"]', modalities)


def _schema(form: Any) -> Any:
    """The JSON schema that response_format asks for; None for text."""
    if form is None or form == {"type": "text"}:
        return None
    if not isinstance(form, dict) or form.get("type") not in ("json_object", "json_schema"):
        raise wrong("response_format", "must have the type text, json_object or json_schema", form)
    if form["type"] == "json_object":
        return {"type": "object"}
    described = form.get("json_schema")
    if not isinstance(described, dict) or described.get("schema") is None:
        raise wrong("response_format.json_schema", "must be an object with a schema", described)
    return described["schema"]


def _model(body: Body, served: Served) -> None:
    name = body.text("model")
    if name is not None and name != served.name:
        raise RequestError(
            404, f"the model {name[:100]!r} is not served here, {served.name!r} is.", "model", "model_not_found"
        )


def _limit(body: Body, served: Served) -> int | None:
    """max_tokens, by either of its names."""
    most = served.engine.room.context
    old, new = (body.integer(name, 0, 1 << 31) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise RequestError(400, "max_tokens and max_completion_tokens differ: give one of them.", "max_tokens")
    limit = new if new is not None else old
    if limit is not None and limit > most:
        raise RequestError(400, f"max_tokens must be at most {most}, the model's context, got {limit}.", "max_tokens")
    return limit


def _prompts(prompt: Any, served: Served) -> list[list[int]]:
    """Ids of each prompt: a string, strings, ids, or lists of ids."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(is_integer, prompt))):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise wrong("prompt", "must be a string, strings, a list of token ids, or such lists", prompt)
    if len(prompt) > _MOST_CHOICES:
        raise RequestError(400, f"a request may have at most {_MOST_CHOICES} prompts, got {len(prompt)}.", "prompt")
    found = []
    for one in prompt:
        if isinstance(one, str):
            found.append(encoded(one, served, "prompt"))
        elif isinstance(one, list) and all(map(is_integer, one)):
            if not all(0 <= token < served.tokenizer.vocab_size for token in one):
                raise RequestError(400, "prompt holds a token id outside the vocabulary.", "prompt")
            found.append(list(one))
        else:
            raise wrong("prompt", "must be a string, strings, a list of token ids, or such lists", one)
        if not found[-1]:
            raise RequestError(400, "a prompt is empty: give it at least one token.", "prompt")
        if len(found[-1]) > served.engine.room.context:
            raise _too_long(len(found[-1]), served)
    return found


def encoded(text: str, served: Served, param: str) -> list[int]:
    """Ids of a text; raises RequestError where it has no UTF-8 form."""
    try:
        return served.tokenizer.encode(text)
    except UserError as error:
        raise RequestError(400, str(error), param) from error


def _messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as `m1jax.tokenizer.chat` takes them."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list of messages", messages)
    found = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise wrong(where, "must be an object with role and content", message)
        body = Body(message)
        role, content = body.take("role"), body.take("content")
        if role not in _ROLES:
            raise wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}", role)
        body.ignore("name", "refusal", "annotations", "audio", "reasoning", "reasoning_content")
        body.refuse(dict.fromkeys(("tool_calls", "function_call"), "this server answers in text."))
        body.end()
        found.append({"role": "system" if role == "developer" else role, "content": _content(content, where)})
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise wrong(f"{where}.content", "must be a string or a list of text parts", content)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text"):
            raise wrong(f"{where}.content", "may hold text parts only", part)
        if not isinstance(part.get("text"), str):
            raise wrong(f"{where}.content", "has a part whose text is no string", part)
        texts.append(part["text"])
    return "".join(texts)


def _too_long(length: int, served: Served) -> RequestError:
    return RequestError(
        400,
        f"the prompt has {length} tokens, the context holds {served.engine.room.context} with the answer: shorten it.",
        "prompt",
        "context_length_exceeded",
    )


@dataclass(frozen=True)
class _Common:
    """What both kinds of body have."""

    sampling: Sampling
    seed: int
    stop: Sequence[str]
    end_ids: list[int]
    presence: float
    frequency: float
    bias: dict[int, float]
    stream: bool
    include_usage: bool

    @classmethod
    def of(cls, body: Body, served: Served, ends: Sequence[int]) -> "_Common":
        sampling = Sampling(
            temperature=body.number("temperature", 1.0, 0, 2),
            top_k=max(0, body.integer("top_k", -1, 1 << 30) or 0),
            top_p=body.number("top_p", 1.0, 0, 1, above=True),
            min_p=body.number("min_p", 0.0, 0, 1),
            repetition_penalty=body.number("repetition_penalty", 1.0, 0, 100, above=True),
        )
        seed = body.integer("seed", -(1 << 63), (1 << 63) - 1)
        stop = strings("stop", body.take("stop"), _MOST_STOPS, _LONGEST_STOP)
        more = body.take("stop_token_ids") or []
        if not isinstance(more, list) or not all(map(is_integer, more)):
            raise wrong("stop_token_ids", "must be a list of token ids", more)
        end_ids = list(dict.fromkeys([*([] if body.flag("ignore_eos") else ends), *more]))
        if len(end_ids) > END_IDS:
            raise RequestError(400, f"stop_token_ids and the model's own are more than {END_IDS}.", "stop_token_ids")
        presence, frequency = (body.number(f"{name}_penalty", 0.0, -2, 2) for name in ("presence", "frequency"))
        bias = _bias(body.take("logit_bias"), served)
        stream, options = body.flag("stream"), Body(_options(body.take("stream_options")))
        usage = options.flag("include_usage")
        options.ignore("include_obfuscation", "continuous_usage_stats")
        options.end()
        body.ignore(*_IGNORED)
        seed = secrets.randbits(63) if seed is None else seed & ((1 << 63) - 1)
        return cls(sampling, seed, stop, end_ids, presence, frequency, bias, stream, usage)

    def requests(
        self, prompts: Sequence[list[int]], n: int, limits: Sequence[int], alternatives: int, score: bool
    ) -> list[Request]:
        """One for each choice; the samples of a prompt share its list of ids."""
        if len(prompts) * n > _MOST_CHOICES:
            raise RequestError(400, f"a request may ask for at most {_MOST_CHOICES} choices in all.", "n")
        return [
            Request(
                prompt, limit, self.sampling, self.seed, sample, self.end_ids, self.presence, self.frequency,
                self.bias, alternatives, score,
            )
            for prompt, limit in zip(prompts, limits, strict=True)
            for sample in range(n)
        ]  # fmt: skip


def _options(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise wrong("stream_options", "must be an object", value)
    return value or {}


def _bias(value: Any, served: Served) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_BIASES:
        raise RequestError(400, f"logit_bias must be an object of at most {_MOST_BIASES} token ids.", "logit_bias")
    body, found = Body(value), {}
    for token in value:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < served.tokenizer.vocab_size):
            raise RequestError(400, f"logit_bias names {token[:50]!r}, which is no token id.", "logit_bias")
        found[int(token)] = body.number(token, 0.0, -100, 100)
    return found
