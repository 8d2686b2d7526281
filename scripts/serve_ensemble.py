"""Serves a prompt ensemble over HTTP: ``python -m scripts.serve_ensemble --model DIR ...``.

``POST /query`` {"texts": [...]}, ``POST /feedback`` {"id": 3, "label": "..."}, ``POST /prompts``
(a packed prompt as octets), ``GET /state``. Every refusal is a 4xx with {"error": {"reason",
"detail"}}. There is no encryption and no login: listen on loopback, or behind a proxy that has
both.
"""

import argparse
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fl_app.data.examples import Examples
from fl_app.data.readers import read_table
from fl_app.errors import DeftError, WireError
from fl_app.fomo.backbone import load_backbone
from fl_app.fomo.frozen import Frozen, load_frozen
from fl_app.fomo.minilm import minilm_path
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import fit_of
from fl_app.prompts.pool import MODEL_FILE, Pool
from fl_app.prompts.service import EnsembleService, columns
from fl_app.tasks import build_task

log = logging.getLogger("deft.serve")
MAX_JSON_BYTES, MAX_PROMPT_BYTES = 2**20, 2**26
MAX_TEXTS, MAX_CHARACTERS = 64, 20_000
_MAX_LENGTH = 128
"""Tokens of a text where neither the command line nor the pool's run tells."""
_STATUS = {
    "bad-json": 400,
    "no-probe": 403,
    "unknown-query": 404,
    "duplicate": 409,
    "feedback-given": 409,
    "pool-full": 409,
    "too-large": 413,
    "wrong-content-type": 415,
    "no-member": 503,
}
_OTHERWISE = 422


def build_app(service: EnsembleService) -> Starlette:
    """Returns the HTTP face of a service."""

    async def query(request: Request) -> JSONResponse:
        texts = _texts(await _json(request, ("texts",)))
        answers = await run_in_threadpool(service.answer, texts)
        return JSONResponse({"answers": [asdict(answer) for answer in answers]})

    async def feedback(request: Request) -> JSONResponse:
        fields = await _json(request, ("id", "label"))
        answer_id, label = fields["id"], fields["label"]
        if type(answer_id) is not int or type(label) is not str:
            raise PromptError("bad-field", "id must be an integer and label a string")
        weights = await run_in_threadpool(service.feedback, answer_id, label)
        return JSONResponse({"weights": weights})

    async def prompts(request: Request) -> JSONResponse:
        _require_type(request, "application/octet-stream")
        blob = await _body(request, MAX_PROMPT_BYTES)
        newcomer, leaver = await run_in_threadpool(service.accept, blob)
        gone = None if leaver is None else leaver.content_hash
        return JSONResponse({"content_hash": newcomer.content_hash, "replaced": gone}, 201)

    async def state(_request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(service.state))

    async def refused(_request: Request, error: Exception) -> JSONResponse:
        reason = getattr(error, "reason", "refused")
        return _refusal(_STATUS.get(reason, _OTHERWISE), reason, str(error))

    async def misrouted(_request: Request, error: Exception) -> JSONResponse:
        status = getattr(error, "status_code", 500)
        reason = str(getattr(error, "detail", error)).lower().replace(" ", "-")
        response = _refusal(status, reason, "there are /query, /feedback, /prompts and /state")
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        service.keep()

    return Starlette(
        routes=[
            Route("/query", query, methods=["POST"]),
            Route("/feedback", feedback, methods=["POST"]),
            Route("/prompts", prompts, methods=["POST"]),
            Route("/state", state, methods=["GET"]),
        ],
        exception_handlers={WireError: refused, HTTPException: misrouted},
        lifespan=lifespan,
    )


def _refusal(status: int, reason: str, detail: str) -> JSONResponse:
    return JSONResponse({"error": {"reason": reason, "detail": detail[:500]}}, status)


def _require_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        raise PromptError("wrong-content-type", f"content-type {given!r} must be {wanted}")


async def _body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PromptError("too-large", f"the body may have {max_bytes} bytes")
    return bytes(body)


async def _json(request: Request, names: Sequence[str]) -> dict[str, Any]:
    _require_type(request, "application/json")
    try:
        fields = json.loads(await _body(request, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise PromptError("bad-json", f"the body is no JSON: {error}") from error
    if type(fields) is not dict or set(fields) != set(names):
        raise PromptError("bad-field", f"the body must be an object with {', '.join(names)}")
    return fields


def _texts(fields: dict[str, Any]) -> list[str]:
    texts = fields["texts"]
    if type(texts) is not list or not 1 <= len(texts) <= MAX_TEXTS:
        raise PromptError("bad-field", f"texts must be a list of 1 to {MAX_TEXTS} strings")
    for place, text in enumerate(texts):
        if not _is_text(text):
            raise PromptError(
                "bad-field",
                f"texts[{place}] must be a string of 1 to {MAX_CHARACTERS} characters, not blank "
                "and without half characters",
            )
    return texts


def _is_text(value: Any) -> bool:
    if type(value) is not str or not value.strip() or len(value) > MAX_CHARACTERS:
        return False
    # JSON can name half of a pair of code units, which no tokenizer takes
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def _frozen(options: argparse.Namespace) -> Frozen:
    """Returns what the pool's model has and its checkpoint lacks; nothing if no run left it."""
    kept = None if options.pool is None else options.pool / MODEL_FILE
    if kept is None or not kept.exists():
        if options.labels is None:
            raise PromptError("missing", "--labels: the pool does not tell them; name the classes")
        return Frozen({}, (), ())
    frozen = load_frozen(kept)
    if options.labels not in (None, ",".join(frozen.labels)):
        raise PromptError(
            "wrong-labels",
            f"--labels={options.labels}, and the members of {options.pool} were tuned on "
            f"{','.join(frozen.labels)}; leave the option out",
        )
    return frozen


def _classes(options: argparse.Namespace, frozen: Frozen) -> tuple[str, ...]:
    """Returns the class names of the pool's run, which may hold commas, or those of the option."""
    labels = frozen.labels or tuple((options.labels or "").split(","))
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(str.strip, labels)):
        raise PromptError(
            "wrong-labels",
            f"the classes are {list(labels)[:20]} and must be two or more names, none blank or "
            "twice; the pool of a language model has none and cannot be served",
        )
    return labels


def _length(options: argparse.Namespace, frozen: Frozen) -> int:
    """Returns the tokens after which texts are cut: the option's, else the run's, else 128."""
    length: int = frozen.max_length or _MAX_LENGTH
    if options.max_length is not None:
        length = options.max_length
    if length < 2:
        raise PromptError("bad-field", f"--max-length={length} must be at least 2")
    return length


def make_service(options: argparse.Namespace) -> EnsembleService:
    """Loads model, pool and probe rows as the command line says.

    Raises:
        DeftError: something is missing or does not fit.
    """
    if options.threads < 1:
        raise PromptError("bad-field", f"--threads={options.threads} must be at least 1")
    torch.set_num_threads(options.threads)
    source = str(minilm_path()) if options.model is None else str(options.model)
    frozen = _frozen(options)
    labels = _classes(options, frozen)
    max_length = _length(options, frozen)
    backbone = load_backbone(source, task="sequence_classification", labels=labels, seed=0)
    frozen.put_into(backbone.model)
    task = build_task(
        backbone.task,
        files=backbone.files,
        labels=labels,
        columns=columns(),
        max_length=max_length,
        model_config=backbone.model.config,
    )
    fit = fit_of(backbone, max_length=max_length)
    pool = Pool(fit, capacity=options.capacity)
    if options.pool is not None and (options.pool / "pool.json").exists():
        for name, reason in pool.load(options.pool).items():
            log.warning("prompt %s is left out: %s", name[:12], reason)
    rows: Examples | None = None if options.probe is None else read_table(options.probe)
    return EnsembleService(
        backbone,
        task,
        pool,
        probe_rows=rows,
        how=options.combiner,
        eta=options.eta,
        most=options.most,
        folder=options.pool,
    )


def build_parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder; MiniLM if left out")
    parser.add_argument("--labels", help="class names, separated by commas; a run's pool has them")
    parser.add_argument("--probe", type=Path, help="table with text and label; gates new prompts")
    parser.add_argument("--pool", type=Path, help="folder that keeps prompts and weights")
    parser.add_argument("--combiner", default="weighted", help="weighted, mean, vote, ...")
    parser.add_argument("--eta", type=float, default=1.0, help="rate of the weights, in (0, 1]")
    parser.add_argument("--most", type=int, help="at most this many members answer")
    parser.add_argument("--capacity", type=int, default=16, help="members of the pool")
    parser.add_argument(
        "--max-length",
        type=int,
        help=f"tokens of a text; left out: as the pool's run, or {_MAX_LENGTH}",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765, help="0 for any free one")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; prints the address as soon as it listens."""
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        service = make_service(options)
    except DeftError as error:
        parser.error(str(error))
    try:
        listener = socket.create_server((options.host, options.port))
    except (OSError, OverflowError) as error:
        parser.error(
            f"--host={options.host} --port={options.port} cannot be listened on: {error}; "
            "choose another port, or 0 for any free one"
        )
    with listener:
        print(f"http://{options.host}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(build_app(service), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
