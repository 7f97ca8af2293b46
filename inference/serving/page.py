"""The page: an image and class names on one side, the probabilities and attention of every model on
the other.
"""

from collections.abc import Sequence
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

from common.errors import UsageError
from common.names import check_names
from common.pages import data_address
from common.text import lines_of

from ..inspection.tower import CLIP_ALONE, compared_roll_outs, highlighted, shares_text
from ..load import Model
from .limits import EVERY, OLDEST, Gate, Limits, largest_of
from .service import Job, Names, Question, Service

BARS = 5  # classes of each model
MOST_NAMES = 1000  # class names on the page: more would take minutes
MOST_CLASSES = 100_000  # of an answer
FONTS = ["system-ui", "sans-serif"]  # no font of another server
TITLE = "Which class is your image?"
# A model's label may have two lines: its answer is below them.
# On a phone: one column with the image, the examples in one row, the answers, and then the class
# names.
CSS = """.gradio-container { max-width: 72rem !important; margin: 0 auto !important }
#image img { width: 100%; height: 100%; object-fit: contain }
#names textarea:disabled { padding: 0; border: 0; background: none; resize: none }
#roll-outs:not(:has(figure)) { display: none }
[data-testid="label-output-value"] { padding-top: 2rem !important }
@media (max-width: 700px) {
    #columns > .column { display: contents }
    #columns > .column > * { flex: 1 1 100%; order: 1 }
    #columns > .column:first-child > .form { order: 2 }
    #examples .gallery { flex-wrap: nowrap; overflow-x: auto }
    #examples .gallery > * { flex: none }
}"""
# Gradio does not read the image, and the service computes questions in batches.
OPTIONS: dict[str, Any] = {
    "concurrency_limit": None,
    "api_visibility": "private",
    "preprocess": False,
}


class Page:
    """The page of one or more models.

    Args:
        names: the class names to begin with.
        examples: files to choose from.
        unknown, coverage: whether to say which images are unknown, and the share of images whose
            class a set has to have; only for the names to begin with.
    """

    def __init__(
        self,
        models: Sequence[Model],
        names: Sequence[str],
        examples: Sequence[Path],
        unknown: bool = False,
        coverage: float | None = None,
    ):
        self.models = models
        classifiers = [model.classifier for model in models]
        self.service = Service(classifiers, names)
        self.unknown = unknown
        self.coverage = coverage
        self.names = list(dict.fromkeys(names))  # some of a model may be equal
        self.is_editable = any(model.classifier.transfers for model in models)
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(EVERY, OLDEST)
        ) as self.blocks:
            gr.Markdown(f"# {TITLE}\nDrop, paste or choose an image. {self.explanation()}")
            with gr.Row(elem_id="columns"):
                image, edited = self.questions(examples)
                shown, looks = self.results()
            gr.on([image.change, edited.change], self.answer, [image, edited], shown, **OPTIONS)
            image.change(self.answer_looks, image, looks, **OPTIONS)

    def explanation(self) -> str:
        """Of the bars."""
        text = f"The bars are the {BARS} most probable classes"
        if self.coverage is not None:
            share = f"{100 * self.coverage:g}% of images"
            text = f"The bars are a set of classes, which has the right one for {share}"
        edited = ", and follow when you edit the class names" if self.is_editable else ""
        return f"{text}{edited}."

    def questions(self, examples: Sequence[Path]) -> tuple[gr.Image, gr.Textbox]:
        """The column of the image and the class names."""
        is_editable = self.is_editable
        label = "Class names, one on each line" if is_editable else "Class names of the model"
        with gr.Column(scale=2, min_width=300):
            image = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                label="Image",
                elem_id="image",
                height=280,
            )
            options: dict[str, Any] = {"label": label, "interactive": is_editable}
            options |= {"lines": 6, "max_lines": 12, "elem_id": "names"}
            edited = gr.Textbox("\n".join(self.names), **options)
            if examples:
                files = [[str(file)] for file in examples]
                options = {"label": "Examples", "elem_id": "examples"}
                gr.Examples(files, image, cache_examples=False, **options)
        return image, edited

    def results(self) -> tuple[list[Any], gr.HTML]:
        """The column of the message with the bars of each model, and of the roll-outs."""
        options: dict[str, Any] = {"visible": False, "interactive": False, "elem_id": "message"}
        with gr.Column(scale=3, min_width=300):
            message = gr.Textbox(label="Message", **options)
            with gr.Row():
                bars = [
                    gr.Label(label=with_accuracy(each), num_top_classes=BARS, min_width=200)
                    for each in self.models
                ]
            title = "Where the model looks (attention roll-out)"
            looks = gr.HTML(label=title, show_label=True, container=True, elem_id="roll-outs")
        return [message, *bars], looks

    def application(self) -> FastAPI:
        """The page as an application, which serves nothing else."""
        app = FastAPI(
            lifespan=self.service.running,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
        )
        app.add_middleware(Limits, uploads=Path(self.blocks.GRADIO_CACHE))
        app.add_middleware(Gate, largest=largest_of, answer=refusal)
        return gr.mount_gradio_app(
            app,
            self.blocks.queue(),
            "/",
            ssr_mode=False,
            mcp_server=False,
            footer_links=[],
            css=CSS,
            theme=gr.themes.Default(
                primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=FONTS
            ),
        )

    async def answer_looks(self, sent: Any) -> str:
        """The roll-outs of an image as HTML; if it is unreadable, the message says it."""
        file = sent_file(sent)
        try:
            return str(await self.ask(file, self.look)) if file else figures([])
        except UsageError:
            return figures([])

    async def answer(self, sent: Any, text: Any) -> list[Any]:
        """A message, and the probabilities of each model as the value of its bars, for an upload:
        `Limits` has checked that it is one.
        """
        file = sent_file(sent)
        nothing: list[Any] = [None] * len(self.models)
        if not file:
            return [self.message(""), *nothing]
        try:
            names = names_in(str(text or ""))
            given = None if names == self.names else tuple(check_names(names))
            answers = await self.ask(file, self.service.answers, given)
        except UsageError as error:
            return [self.message(str(error), file), *nothing]
        faults = dict.fromkeys(str(each) for each in answers if isinstance(each, UsageError))
        bars = [self.bar(answer, names) for answer in answers]
        return [self.message("\n".join(faults), file), *bars]

    async def ask(self, file: str, work: Any, names: Names = None) -> Any:
        """The result of the service for an image; UsageError if it has none."""
        sets = self.coverage if names is None else None
        question = Question(image="", top_k=MOST_CLASSES, sets=sets)
        (result,) = await self.service.results_of([Path(file)], work, question, names)
        if isinstance(result, UsageError):
            raise result
        return result

    def bar(self, answer: Any, names: Sequence[str]) -> dict[str, float] | str | None:
        """The value of a model's bars.

        It is `unknown`, or a set of more classes than there are bars, or the probability of each
        name of a set or else of all names, which may be that of several classes.
        """
        if isinstance(answer, UsageError):
            return None
        if self.unknown and answer["unknown"]:
            return "unknown"
        members = answer["set"]
        if members is None:
            return summed(answer["top"], names)
        if not members:
            return "none of the classes"
        if len(members) > BARS:
            return f"one of {len(members)}: {', '.join(each['class'] for each in members)}"
        return summed(members, ())

    @staticmethod
    def message(text: str, file: str = "") -> Any:
        """The update of the message, without the server's folders."""
        return gr.update(
            value=text.replace(f"{Path(file).parent}/", "") if file else text, visible=bool(text)
        )

    def look(self, jobs: Sequence[Job], names: Names = None) -> list[str]:
        """The roll-outs of each image, as HTML."""
        return [figures(self.roll_outs(job.pixels)) for job in jobs]

    @torch.no_grad()
    def roll_outs(self, inputs: Sequence[torch.Tensor]) -> list[tuple[Image.Image, str]]:
        """For each backbone alone, then for each model that changes its image tower."""
        found: dict[str, tuple[Image.Image, str]] = {}
        for (name, classifier), views in zip(self.models, inputs, strict=True):
            pixels = views[:, 0] if views.dim() == 5 else views  # of views, the whole image
            (colours,) = classifier.colours(pixels)
            for tower, (shares,) in compared_roll_outs(classifier, pixels).items():
                title = "CLIP without prompts" if tower == CLIP_ALONE else name
                key = f"{title} {classifier.backbone} {classifier.cfg.INPUT}"
                picture = highlighted(colours, shares).mul(255).byte().permute(1, 2, 0).numpy()
                found[key] = Image.fromarray(picture), f"{title}: {shares_text(shares)}"
        return list(found.values())


def summed(answers: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """The probability of each name, of which several classes may have one; 0 for other names."""
    found = dict.fromkeys(names, 0.0)
    for each in answers:
        found[each["class"]] = found.get(each["class"], 0.0) + each["probability"]
    return found


def refusal(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(text, status)


def with_accuracy(model: Model) -> str:
    """The name of a model, with the dataset and the accuracy of its test or the estimate of its
    fit, if they are known.
    """
    of = model.classifier.description
    accuracy = of.training.get("accuracy")
    estimate = of.training.get("estimated_accuracy")
    tested = [f"{accuracy:.1f}% in its test"] if isinstance(accuracy, int | float) else []
    tested += [f"estimate {estimate:.0f}%"] if isinstance(estimate, int | float) else []
    return ", ".join(filter(None, [model.name, of.dataset, *tested]))


def sent_file(sent: Any) -> str | None:
    """The file that a visitor has sent, if any."""
    file = sent.get("path") if isinstance(sent, dict) else None
    return file if isinstance(file, str) else None


def figures(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Pictures with their captions as HTML."""
    found = ""
    for picture, caption in pictures:
        picture.save(file := BytesIO(), "png")
        address = data_address(file.getvalue(), "png")
        image = f'<img src="{address}" alt="" style="width: 100%; image-rendering: pixelated">'
        found += f'<figure style="width: min(10rem, 45%)">{image}<figcaption>'
        found += f"{escape(caption)}</figcaption></figure>"
    return (
        f'<div style="display: flex; flex-wrap: wrap; gap: 1rem; padding-top: 1.5rem">{found}</div>'
    )


def names_in(text: str) -> list[str]:
    """The class names in the lines of a text; UsageError for none, or too many."""
    names = lines_of(text)
    if not 0 < len(names) <= MOST_NAMES:
        fault = f"there are {len(names) or 'no'} class names"
        raise UsageError(fault, f"give 1 to {MOST_NAMES:,}")
    return names
