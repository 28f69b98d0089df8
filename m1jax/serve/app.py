"""The paths of the server."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from m1jax.serve import asked as bodies
from m1jax.serve.answering import Answering
from m1jax.serve.asked import Asked
from m1jax.serve.body import is_integer, wrong
from m1jax.serve.errors import RequestError
from m1jax.serve.http import LOG, Door, EventStream, refusal, while_there
from m1jax.serve.metrics import Metrics
from m1jax.serve.served import Served
from m1jax.serve.worker import Worker

_PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {
    # Nothing from elsewhere, and what a model writes can do nothing.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ELSEWHERE = {
    "responses": "use /v1/chat/completions",
    "embeddings": "this model continues text and has no embeddings to offer",
    "images/generations": "this model writes text only",
    "audio/speech": "this model writes text only",
    "audio/transcriptions": "this model reads text only",
    "moderations": "this model judges no text",
    "files": "a request brings its text with it",
    "batches": "send the requests of a batch at once, the server forms batches itself",
    "fine_tuning/jobs": "use `m1 sft` or `m1 prefer`",
}


def make(served: Served) -> Starlette:
    """The ASGI application; the engine runs from its startup to its shutdown."""
    worker, metrics = Worker(served.engine), Metrics(served.engine)
    api = _Api(served, worker, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.stop)

    return Starlette(
        routes=api.routes(),
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_such_path},
    )


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "the paths are /v1/models, /v1/completions, /v1/chat/completions, /tokenize, /detokenize, /health, /metrics"
    sentence = f"{request.method} is not possible here" if error.status_code == 405 else "there is no such path"
    return refusal(RequestError(error.status_code, f"{sentence}: {known}."))


class _Api:
    """The handlers of all paths."""

    def __init__(self, served: Served, worker: Worker, metrics: Metrics):
        self._served, self._worker, self._metrics = served, worker, metrics
        self._door = Door(served.settings, metrics)

    def routes(self) -> list[Route]:
        door = self._door
        found = [
            Route(path, door.endpoint(handler, path, open_to_all=path in ("/", "/health")), methods=[method])
            for path, handler, method in (
                ("/", self.page, "GET"),
                ("/card", self.card, "GET"),
                ("/health", self.health, "GET"),
                ("/metrics", self.prometheus, "GET"),
                ("/v1/models", self.models, "GET"),
                ("/v1/models/{name:path}", self.model, "GET"),
                ("/v1/completions", self.completions, "POST"),
                ("/v1/chat/completions", self.chat_completions, "POST"),
                ("/tokenize", self.tokenize, "POST"),
                ("/detokenize", self.detokenize, "POST"),
            )
        ]
        for path, instead in _ELSEWHERE.items():
            path = f"/v1/{path}"
            found.append(Route(path, door.endpoint(_unsupported(path, instead), path), methods=["GET", "POST"]))
        return found

    async def page(self, _: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    async def card(self, _: Request) -> Response:
        served = self._served
        context = served.engine.room.context
        return JSONResponse(
            {"name": served.name, "card": served.card, "context": context, "chat": served.chat is not None}
        )

    async def health(self, _: Request) -> Response:
        if not self._worker.alive:
            raise RequestError(503, "the engine is not running.")
        return JSONResponse({"status": "ok"})

    async def prometheus(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _described(self) -> dict[str, Any]:
        served = self._served
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "m1jax",
            "max_model_len": served.engine.room.context,
        }

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self._served.name:
            raise RequestError(
                404, f"this model is not served here, {self._served.name!r} is.", "model", "model_not_found"
            )
        return JSONResponse(self._described())

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, bodies.completion, is_chat=False)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, bodies.chat, is_chat=True)

    async def _answer(self, request: Request, read: Any, is_chat: bool) -> Response:
        served = self._served
        # In a thread: long texts take long to tokenize, and a model's own template is a program.
        asked: Asked = await run_in_threadpool(read, await self._door.body(request), served)
        answering = Answering.begin(served, self._worker, asked, self._metrics, is_chat)
        if asked.stream:
            ended = answering.call.cancel
            return EventStream(answering.events(), lambda: self._log(answering, ended), served.settings.timeout)
        try:
            return JSONResponse(await while_there(request, answering.whole()))
        finally:
            self._log(answering, answering.call.cancel)

    def _log(self, answering: Answering, ended: Any) -> None:
        ended()
        usage = answering.usage
        reasons = ",".join(choice.finish_reason or "broken off" for choice in answering.choices)
        LOG.info("%s: %s + %s tokens, %s", answering.name, usage["prompt_tokens"], usage["completion_tokens"], reasons)
        if self._served.settings.log_text:
            prompts = [self._served.tokenizer.decode(one.tokens) for one in answering.asked.requests]
            texts = [choice.text for choice in answering.choices]
            LOG.info("%s: %s", answering.name, json.dumps({"prompts": prompts, "answers": texts}))

    async def tokenize(self, request: Request) -> Response:
        body, served = await self._door.body(request), self._served
        body.ignore("model", "add_special_tokens", "return_token_strs")
        text, messages = body.text("prompt"), body.take("messages")
        body.ignore("add_generation_prompt")
        body.end()
        if (text is None) == (messages is None):
            raise RequestError(400, "give either prompt, a string, or messages.", "prompt")
        if text is not None:
            ids = await run_in_threadpool(bodies.encoded, text, served, "prompt")
        else:
            ids = await run_in_threadpool(bodies.conversation, messages, served)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": served.engine.room.context})

    async def detokenize(self, request: Request) -> Response:
        body, served = await self._door.body(request), self._served
        body.ignore("model")
        tokens = body.take("tokens")
        body.end()
        size = served.tokenizer.vocab_size
        if not isinstance(tokens, list) or not all(is_integer(one) and 0 <= one < size for one in tokens):
            raise wrong("tokens", "must be a list of token ids of the vocabulary", tokens)
        return JSONResponse({"prompt": await run_in_threadpool(served.tokenizer.decode, tokens)})


def _unsupported(path: str, instead: str) -> Any:
    async def unsupported(_: Request) -> Response:
        raise RequestError(404, f"{path} is not supported: {instead}.", code="unsupported_endpoint")

    return unsupported
