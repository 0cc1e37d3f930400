"""Will it fit: `fitune plan` for any model and card, its grid, its ladder, and how far it goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fitune.config.fields import all_fields
from fitune.models.builtin import BUILTIN
from fitune.planning.gpus.catalogue import catalogue
from fitune.studio.confine import Refused
from fitune.studio.session import Studio
from fitune.studio.starting.child_command import Superseded
from fitune.studio.starting.settings_form import outside
from fitune.studio.templating import page, render
from fitune.studio.views.new_run import card_words, read_form
from fitune.studio.views.pieces import piece_of
from fitune.studio.views.plan_pieces import grid_values, ladder_values, most_values, plan_values

SETTINGS = (
    "model.name", "method", "train.tuning", "model.quantization", "lora.rank", "train.micro_batch_size", "train.batch_size",
    "train.gradient_checkpointing", "train.optimizer",
)  # fmt: skip
# What is asked → the command's words, and whether they need a card.
QUESTIONS = {
    "plan": ("One plan", [], False),
    "ladder": ("What would make it fit", ["--ladder"], True),
    "grid": ("Every combination of remedies", ["--grid"], False),
    "seq-len": ("The longest rows that fit", ["--max=seq-len"], True),
    "batch": ("The largest batch that fits", ["--max=batch"], True),
    "rank": ("The largest LoRA rank that fits", ["--max=rank"], True),
}


def routes(studio: Studio) -> list[Route]:
    """Addresses of this screen."""

    async def form(request: Request) -> Response:
        return page(
            request,
            "fit.html",
            values=dict(request.query_params),
            fields=[all_fields()[key] for key in SETTINGS],
            cards=list(catalogue()),
            models=list(BUILTIN),
            questions=QUESTIONS,
        )

    async def answer(request: Request) -> Response:
        given = await read_form(request)
        return piece_of(request, "Will it fit", await answered(studio, given))

    async def picture(request: Request) -> Response:
        given = await read_form(request)
        return await kept(studio, given)

    return [
        Route("/fit", form),
        Route("/fit/answer", answer, methods=["POST"]),
        Route("/fit/picture", picture, methods=["POST"]),
    ]


async def answered(studio: Studio, given: dict[str, str]) -> str:
    """The answer to a filled-in form, as HTML."""
    words = _words(studio, given)
    question = given.get("question", "plan")
    try:
        answer = await studio.children.ask("fit", ["plan", "--json", *words, *QUESTIONS[question][1]], keep=True)
    except Superseded:
        return ""
    found = answer.value
    if not isinstance(found, dict):
        return render("new/memory.html", error=answer.error)
    if question == "plan":
        return render("new/memory.html", error="", **plan_values(found))
    if question == "ladder":
        return render("new/ladder.html", error="", **ladder_values(found))
    if question == "grid":
        card = found.get("card")
        usable = await _usable(studio, words) if card else None
        return render("fit/grid.html", **grid_values(found, usable))
    return render("fit/most.html", **most_values(found))


async def kept(studio: Studio, given: dict[str, str]) -> Response:
    """A file of its own that shows the answer: HTML that loads nothing."""
    words, question = _words(studio, given), given.get("question", "plan")
    if question not in ("plan", "ladder", "grid"):
        raise Refused("pictures are made of a plan, a grid and a ladder", 400)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.html"
        more = QUESTIONS[question][1]
        try:
            answer = await studio.children.ask("fit", ["plan", f"--html={file}", *words, *more])
        except Superseded as error:
            raise Refused("another question was asked meanwhile", 409) from error
        if not file.is_file():
            raise Refused(answer.error, 400)
        text = file.read_bytes()
    return Response(
        text,
        media_type="text/html",
        headers={"content-disposition": f'attachment; filename="fitune-{question}.html"'},
    )


def _words(studio: Studio, given: dict[str, str]) -> list[str]:
    """The form as words of `fitune plan`.

    Raises:
        Refused: an unknown question, a card that is needed and not named, a model that was not opened.
    """
    question = given.get("question", "plan")
    if question not in QUESTIONS:
        raise Refused("there is no such question", 400)
    card = card_words(given)
    if QUESTIONS[question][2] and not card:
        raise Refused("name a card or a budget: this question is about its memory", 400)
    for key, sentence in outside({"model.name": given.get("model.name", "").strip()}, studio.folders):
        raise Refused(f"{key} {sentence}", 403)
    length = given.get("seq_len", "").strip()
    words = [f"--{key}={given[key].strip()}" for key in SETTINGS if given.get(key, "").strip()]
    return [*card, *([f"--seq-len={length}"] if length else []), *words]


async def _usable(studio: Studio, words: list[str]) -> int | None:
    """What the card holds, which a grid does not say."""
    answer = await studio.children.ask("fit", ["plan", "--json", *words], keep=True)
    return answer.value.get("usable_bytes") if isinstance(answer.value, dict) else None
