"""The page: an image and class names on one side, the probabilities and attention of every model on the other."""

from base64 import b64encode
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from fastapi import FastAPI
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from clip import ClipError
from common.errors import UsageError
from common.names import check_names

from ..classifier import PromptedClassifier
from ..images import Batch, in_set, one_thread, read_batch
from ..inspection.tower import CLIP_ALONE, compared_roll_outs, highlighted, shares_text
from ..models import Model
from .limits import AT_ONCE, EVERY, OLDEST, Gate, Limits, Turns, is_file, is_text, largest_of
from .reading import Readers

BARS = 5  # classes of each model
MOST_NAMES, MOST_TEXT = 1000, 20_000  # class names on the page and their characters: more would take minutes
LONG_NAMES = 100  # more of them take seconds: one such request at a time, by one thread
MOST_WAITING = 100  # requests until Gradio's threads take them, and `Turns` decides
REMEMBERED = 32  # images: both functions of the page read each, and class names are edited
FONTS = ["system-ui", "sans-serif"]  # no font of another server
# A model's label may have two lines: its answer is below them.
# On a phone: one column with the image, the examples in one row, the answers, and then the class names.
CSS = """[data-testid="label-output-value"] { padding-top: 2rem !important }
@media (max-width: 700px) {
    #columns > .column { display: contents }
    #columns > .column > * { flex: 1 1 100%; order: 1 }
    #columns > .column:first-child > .form { order: 2 }
    #examples .gallery { flex-wrap: nowrap; overflow-x: auto }
    #examples .gallery > * { flex: none }
}"""
# Gradio does not read the image, and `Turns` says whose request is computed.
OPTIONS: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "preprocess": False}


class Page:
    """The page of one or more models.

    Args:
        names: the class names to begin with.
        examples: files to choose from.
        unknown, coverage: whether to say which images are unknown, and the share of images whose class a set has to
            have; only for the names to begin with.
    """

    def __init__(
        self,
        models: Sequence[Model],
        names: Sequence[str],
        examples: Sequence[Path],
        unknown: bool = False,
        coverage: float | None = None,
    ):
        self.models, self.own_names = models, list(names)
        self.turns, self.readers = Turns(), Readers(AT_ONCE)
        self.read = lru_cache(REMEMBERED)(self.read_image)
        self.unknown, self.coverage = unknown, coverage
        self.names = list(dict.fromkeys(names))  # some of a model may be equal
        self.functions = [[is_file, is_text], [is_file]]
        if examples:  # the number of one
            numbers = list(range(len(examples)))
            self.functions.insert(0, [lambda value: type(value) is int and value in numbers])
        with gr.Blocks(title="Prompted CLIP", analytics_enabled=False, delete_cache=(EVERY, OLDEST)) as self.blocks:
            gr.Markdown(
                "# Prompted CLIP\nDrop, paste or choose an image. The bars are the "
                f"{BARS} most probable classes, and follow when you edit the class names."
            )
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=2, min_width=300):
                    image = gr.Image(
                        type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=280
                    )
                    text = "\n".join(self.names)
                    edited = gr.Textbox(text, lines=6, max_lines=12, label="Class names, one on each line")
                    if examples:
                        files = [[str(file)] for file in examples]
                        gr.Examples(files, image, label="Examples", cache_examples=False, elem_id="examples")
                with gr.Column(scale=3, min_width=300):
                    message = gr.Textbox(label="Message", visible=False, interactive=False, elem_id="message")
                    with gr.Row():
                        bars = [
                            gr.Label(label=with_accuracy(each), num_top_classes=BARS, min_width=200) for each in models
                        ]
                    title = "Attention roll-out: shares in the answer"
                    looks = gr.HTML(label=title, show_label=True, container=True)
            gr.on(
                [image.change, edited.change],
                self.answer,
                [image, edited],
                [message, *bars],
                **OPTIONS,
            )
            image.change(self.answer_looks, image, looks, **OPTIONS)

    def application(self) -> FastAPI:
        """The page as an application, which serves nothing else."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        uploads = Path(self.blocks.GRADIO_CACHE)
        app.add_middleware(
            Limits,
            uploads=uploads,
            turns=self.turns,
            functions=self.functions,
        )
        app.add_middleware(Gate, largest=largest_of, answer=refusal)
        return gr.mount_gradio_app(
            app,
            self.blocks.queue(max_size=MOST_WAITING),
            "/",
            ssr_mode=False,
            mcp_server=False,
            footer_links=[],
            css=CSS,
            theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
        )

    def answer(self, sent: Any, text: Any, request: gr.Request) -> list[Any]:
        """`classify` in the turn of a visitor, whose image is an upload: `Limits` has checked that."""
        text = str(text or "")
        lines = text.splitlines()
        is_long = len(lines) > LONG_NAMES and lines != self.names
        with self.turns.of(*visitor(request), is_long), one_thread() if is_long else nullcontext():
            return self.classify(file_of(sent), text)

    def answer_looks(self, sent: Any, request: gr.Request) -> str:
        """`look` in the turn of a visitor, as HTML."""
        with self.turns.of(*visitor(request)):
            return figures(self.look(file_of(sent)))

    @torch.no_grad()
    def classify(self, file: str | None, text: str) -> list[Any]:
        """A message, and the probabilities of each model as the value of its bars."""
        nothing: list[Any] = [None] * len(self.models)
        if not file:
            return [self.message(""), *nothing]
        try:
            if len(text) > MOST_TEXT:
                raise UsageError(f"the class names have {len(text):,} characters", f"give at most {MOST_TEXT:,}")
            names = [line for line in text.splitlines() if line.strip()]
            if not 0 < len(names) <= MOST_NAMES:
                raise UsageError(f"there are {len(names) or 'no'} class names", f"give 1 to {MOST_NAMES:,}")
            return self.bars(file, check_names(names))
        except UsageError as error:
            return [self.message(str(error), file), *nothing]

    def bars(self, file: str, names: list[str]) -> list[Any]:
        """`classify` for names that may be used; UsageError if the image cannot be read."""
        _, inputs, faults = self.read(file)
        for fault in faults:
            raise UsageError(fault)
        found: list[dict[str, float] | str | None] = []
        errors: dict[str, bool] = {}  # each once, in their order
        for (_, classifier), pixels in zip(self.models, inputs, strict=True):
            try:
                unchanged = names == self.names and classifier.class_names == self.own_names
                shown = self.own_names if unchanged else names
                logits = classifier.logits(pixels, None if unchanged else names)
                (row,) = classifier.repaired(logits, None if unchanged else names).softmax(dim=-1)
                text = self.answer_in_words(classifier, logits, row) if unchanged else ""
                found.append(text or added(shown, row.tolist()))
            except (UsageError, ClipError) as error:
                found.append(None)
                errors[str(error)] = True
        return [self.message("\n".join(errors), file), *found]

    def answer_in_words(self, classifier: PromptedClassifier, logits: torch.Tensor, row: torch.Tensor) -> str:
        """`unknown`, or a set of more classes than there are bars; empty if the bars say more."""
        if self.unknown and classifier.unknown(logits).item():
            return "unknown"
        if self.coverage is None:
            return ""
        members = in_set(classifier.sets(logits, self.coverage)[0], row, self.own_names) or []
        return f"one of {len(members)}: {', '.join(name for name, _ in members)}" if len(members) > BARS else ""

    @staticmethod
    def message(text: str, file: str = "") -> Any:
        """The update of the message, without the server's folders."""
        return gr.update(value=text.replace(f"{Path(file).parent}/", "") if file else text, visible=bool(text))

    def read_image(self, file: str) -> Batch:
        """An image, once for all models that read it in the same way."""
        return read_batch([Path(file)], [classifier for _, classifier in self.models], self.readers.read)

    @torch.no_grad()
    def look(self, file: str | None) -> list[tuple[Image.Image, str]]:
        """Which patches CLS consists of: for each backbone alone, then for each model that changes its image tower."""
        found: dict[str, tuple[Image.Image, str]] = {}
        inputs: list[torch.Tensor] = []
        with suppress(UsageError):  # the message is about it, and about an unreadable image
            inputs = self.read(file)[1] if file else []
        for (name, classifier), pixels in zip(self.models, inputs, strict=bool(inputs)):
            pixels = pixels[:, 0] if pixels.dim() == 5 else pixels  # of views, the first: the whole image
            (colours,) = classifier.colours(pixels)
            for tower, (shares,) in compared_roll_outs(classifier, pixels).items():
                title = tower if tower == CLIP_ALONE else name
                key = f"{title} {classifier.cfg.MODEL.BACKBONE.NAME} {classifier.cfg.INPUT}"
                picture = highlighted(colours, shares).mul(255).byte().permute(1, 2, 0).numpy()
                found[key] = Image.fromarray(picture), f"{title}: {shares_text(shares)}"
        return list(found.values())


def refusal(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(text, status)


def with_accuracy(model: Model) -> str:
    """The name of a model, with the dataset and the accuracy of its test, if they are known."""
    of = model.classifier.description
    accuracy = of.training.get("accuracy")
    tested = [f"{accuracy:.1f}% in its test"] if isinstance(accuracy, int | float) else []
    return ", ".join(filter(None, [model.name, of.dataset, *tested]))


def added(names: Sequence[str], probabilities: Sequence[float]) -> dict[str, float]:
    """The probability of each name, which may be that of several classes."""
    found = dict.fromkeys(names, 0.0)
    for name, value in zip(names, probabilities, strict=True):
        found[name] += value
    return found


def file_of(sent: Any) -> str | None:
    """The file that a visitor has sent, if any."""
    file = sent.get("path") if isinstance(sent, dict) else None
    return file if isinstance(file, str) else None


def visitor(request: gr.Request) -> tuple[str, str]:
    """The address and the session of a visitor; a session may be anything that the visitor has invented."""
    return request.client.host if request.client else "", str(request.session_hash)


def figures(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Pictures with their captions as HTML."""
    found = ""
    for picture, caption in pictures:
        picture.save(file := BytesIO(), "png")
        address = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
        image = f'<img src="{address}" alt="" style="width: 100%; image-rendering: pixelated">'
        found += f'<figure style="width: min(10rem, 45%)">{image}<figcaption>{escape(caption)}</figcaption></figure>'
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1rem; padding-top: 1.5rem">{found}</div>'
