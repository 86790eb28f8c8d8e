"""The routes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.serving.completion import Completion, Completions
from bagpiper_jax.serving.metrics import Metrics
from bagpiper_jax.serving.refusals import Refusal
from bagpiper_jax.serving.service import Service


def create_app(
    pipeline: Pipeline,
    *,
    model: str,
    queue: int = 64,
    timeout: float = 300.0,
    max_body: int = 32 * 2**20,
    token: str | None = None,
) -> FastAPI:
    """The server as an ASGI application for one event loop; `app.state.service` is its `Service`.

    Args:
      pipeline: nothing else may use its engine.
      model: its name.
      queue: requests that may wait.
      timeout: seconds for a request.
      max_body: bytes of a request.
      token: that requests must bear; None asks for none.
    """
    service, metrics = Service(pipeline.engine, limit=queue), Metrics()
    metrics.running.set_function(lambda: service.running)
    metrics.waiting.set_function(lambda: service.waiting)
    shared = Completions(
        pipeline, service, metrics, model=model, timeout=timeout, max_body=max_body
    )
    created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        await asyncio.to_thread(service.stop)
        shared.close()

    async def authorise(request: Request) -> None:
        if token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # headers come as Latin-1
        same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if kind.lower() != "bearer" or not same:
            metrics.ended("unauthorized", 0.0)
            raise Refusal(
                401, "a bearer token is needed: Authorization: Bearer …", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    # bodies are read by `Completion`, so a generated page would not tell what they hold
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    guarded = [Depends(authorise)]

    @app.exception_handler(Refusal)
    async def refuse(_: Request, why: Refusal) -> Response:
        return JSONResponse(why.body, why.status, why.headers)

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, e: HTTPException) -> Response:
        return JSONResponse(Refusal(e.status_code, str(e.detail)).body, e.status_code, e.headers)

    @app.post("/v1/chat/completions", dependencies=guarded, response_model=None)
    async def chat() -> Response:
        return Completion(shared)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def one_model(name: str) -> dict:
        if name != model:
            raise Refusal(404, f"there is no model {name!r} here", code="model_not_found")
        return card()

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if service.alive else 503)

    @app.get("/metrics", dependencies=guarded)
    async def figures() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def card() -> dict:
        context = pipeline.config.decoder.max_position_embeddings
        of = {"object": "model", "created": created, "owned_by": "bagpiper_jax"}
        return {"id": model, **of, "max_model_len": context}

    return app
