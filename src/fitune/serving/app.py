"""The HTTP side: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fitune.errors import FituneError, did_you_mean
from fitune.evaluation.generation import Sampling, check_fits
from fitune.serving.answer_objects import AnswerObjects, ChatObjects, TextObjects
from fitune.serving.batch_generation import AnswerRequest, TokenScore
from fitune.serving.call_reader import CallReader
from fitune.serving.engine import Engine, ServedModel, Waiting
from fitune.serving.reply import FinishedReply, Reply, TextDelta
from fitune.serving.requests import BadRequest, ChatQuestion, Question, TextQuestion, read_question

MOST_BYTES = 32 * 2**20
Piece: TypeAlias = "tuple[TextDelta, TokenScore | None] | FinishedReply | BaseException"


@dataclass(frozen=True)
class ServeOptions:
    """What a server was started with; `api_key` None asks for none."""

    api_key: str | None = None
    max_new_tokens: int = 1024


def make_app(engine: Engine, options: ServeOptions) -> Starlette:
    """The application over a started engine."""
    server = _Server(engine, options)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        yield
        engine.close()

    guarded = {
        "/v1/models": (server.models, "GET"),
        "/v1/chat/completions": (server.chat, "POST"),
        "/v1/completions": (server.text, "POST"),
    }
    routes = [Route(path, server.guarded(handler), methods=[method]) for path, (handler, method) in guarded.items()]
    return Starlette(routes=[*routes, Route("/health", server.health)], lifespan=lifespan)


class _Server:
    """The handlers."""

    def __init__(self, engine: Engine, options: ServeOptions):
        self.engine, self.options = engine, options
        self.call_readers: dict[str, CallReader | None] = {}
        self.started = int(time.time())

    def guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A handler behind the key, its errors in OpenAI's form."""

        async def handle(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except BadRequest as error:
                return _error(str(error), error.status, error.field)
            except FituneError as error:
                return _error(str(error), 400)
            except ClientDisconnect:
                return Response(status_code=499)

        return handle

    async def health(self, _: Request) -> Response:
        """That the server is there."""
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        """What `model` may name."""
        listed = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "fitune"}
            for name in self.engine.models
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def chat(self, request: Request) -> Response:
        """A conversation's next answer."""
        question = cast(ChatQuestion, read_question(await _body(request), ChatQuestion))
        served = self._served(question.model)
        renderer = served.renderer
        tools = [_tool(tool, at) for at, tool in enumerate(question.tools)]
        prompt = renderer.prompt_ids(question.read_messages(), tools, question.enable_thinking)
        reply = Reply(
            renderer=renderer,
            prompt=prompt,
            stop=question.stop,
            tools=tools,
            calls=self._calls(served) if tools else None,
        )
        num_logprobs = (question.top_logprobs or 0) if question.logprobs else None
        limit = question.max_completion_tokens or question.max_tokens
        objects = ChatObjects(question.model, renderer.tokenizer)
        return await self._respond(request, question, reply, num_logprobs, limit, objects)

    async def text(self, request: Request) -> Response:
        """A text gone on with."""
        question = cast(TextQuestion, read_question(await _body(request), TextQuestion))
        served = self._served(question.model)
        given = question.one_prompt()
        prompt = served.renderer.text_ids(given) if isinstance(given, str) else given
        reply = Reply(renderer=served.renderer, prompt=prompt, stop=question.stop, plain=True)
        objects = TextObjects(question.model, served.renderer.tokenizer)
        return await self._respond(request, question, reply, question.logprobs, question.max_tokens or 16, objects)

    def _served(self, name: str) -> ServedModel:
        if found := self.engine.models.get(name):
            return found
        known = list(self.engine.models)
        raise BadRequest(
            f'there is no model "{name}"{did_you_mean(name, known)}; here are: {", ".join(known)}', "model", status=404
        )

    def _calls(self, served: ServedModel) -> CallReader | None:
        if served.name not in self.call_readers:
            self.call_readers[served.name] = CallReader.of(served.renderer)
        return self.call_readers[served.name]

    def _check_key(self, request: Request) -> None:
        wanted = self.options.api_key
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if wanted and not secrets.compare_digest(given.encode(), wanted.encode()):
            raise BadRequest("the API key is missing or wrong; send it as Authorization: Bearer KEY", status=401)

    async def _respond(
        self,
        request: Request,
        question: Question,
        reply: Reply,
        num_logprobs: int | None,
        limit: int | None,
        objects: AnswerObjects,
    ) -> Response:
        """Queue the answer; send it whole, or as it comes."""
        limit = limit or self._room(len(reply.prompt))
        check_fits(self.engine.target.model, reply.prompt, limit)
        # OpenAI's default is temperature 1; what was trained is asked greedily unless the client wants otherwise.
        sampling = Sampling(limit, question.temperature or 0.0, question.top_p or 1.0)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def tell(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def on_token(token: int, score: TokenScore | None) -> bool:
            tell((reply.add(token), score))
            return reply.cut

        asked = AnswerRequest(
            prompt=list(reply.prompt),
            sampling=sampling,
            on_token=on_token,
            num_logprobs=num_logprobs,
            seed=question.seed,
        )
        waiting = Waiting(question.model, asked, lambda error: tell(error or reply.finish()))
        if not self.engine.submit(waiting):
            raise BadRequest("too many requests are waiting; try again later", status=503)
        if question.stream:
            with_usage = bool(question.stream_options and question.stream_options.include_usage)
            events = _events(pieces, objects, reply, with_usage, asked)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return await _whole(request, pieces, objects, reply, asked)

    def _room(self, prompt: int) -> int:
        """New tokens when the client names no limit: the server's, and no more than the context has room for."""
        config = self.engine.target.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or prompt + self.options.max_new_tokens
        return max(min(self.options.max_new_tokens, context - prompt), 1)


async def _whole(
    request: Request, pieces: asyncio.Queue[Piece], objects: AnswerObjects, reply: Reply, asked: AnswerRequest
) -> Response:
    scores: list[TokenScore] = []
    while True:
        try:
            piece = await asyncio.wait_for(pieces.get(), timeout=1)
        except TimeoutError:
            if await request.is_disconnected():
                asked.cancelled.set()
                raise ClientDisconnect from None
            continue
        if isinstance(piece, FinishedReply):
            return JSONResponse(objects.whole(piece, scores, len(reply.prompt), len(reply.ids)))
        if isinstance(piece, BaseException):
            return _error(f"the answer failed: {type(piece).__name__}: {piece}", 500)
        if piece[1] is not None:
            scores.append(piece[1])


async def _events(
    pieces: asyncio.Queue[Piece], objects: AnswerObjects, reply: Reply, with_usage: bool, asked: AnswerRequest
) -> AsyncGenerator[str, None]:
    """Server-sent events; a client that goes away ends the answer."""
    try:
        for chunk in objects.first():
            yield _event(chunk)
        while True:
            piece = await pieces.get()
            if isinstance(piece, BaseException):
                yield _event({"error": {"message": f"the answer failed: {type(piece).__name__}: {piece}"}})
                return
            if isinstance(piece, FinishedReply):
                for chunk in objects.last(piece, len(reply.prompt), len(reply.ids), with_usage):
                    yield _event(chunk)
                yield "data: [DONE]\n\n"
                return
            for chunk in objects.more(*piece):
                yield _event(chunk)
    finally:
        asked.cancelled.set()


async def _body(request: Request) -> bytes:
    """The body, within MOST_BYTES."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise BadRequest(f"the body is larger than {MOST_BYTES // 2**20} MiB", status=413)
        parts.append(part)
    return b"".join(parts)


def _tool(tool: Any, at: int) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"tools[{at}] is {str(tool)[:60]}; an object with type and function.name is needed", "tools")
    return tool


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(text: str, status: int, field: str | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": text, "type": kind, "param": field, "code": None}}, status_code=status)
