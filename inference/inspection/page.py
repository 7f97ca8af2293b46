"""The findings about a model as files: inspect.json, pictures, and inspect.html with all of it."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.files import write_text
from common.pages import render

from .pictures import PICTURES, draw

MOST_WORDS = 300  # rows of the page's table
# Why a picture is missing, by its name.
ABSENT = {
    "schedule": "There are no learned prompts.",
    "attention": "There are no vision prompts, or no images are given (--images), or no attention in the image tower.",
    "geometry": "As above.",
    "added": "There are no vision prompts.",
    "rollout": "No images are given (--images), or the image tower has no attention.",
    "features": "Give at least three images (--images).",
}


def write(content: dict[str, Any], folder: Path) -> None:
    """Write everything to an existing folder.

    Raises:
        UsageError: a number is not finite.
    """
    found = [{key: value for key, value in row.items() if key != "pixels"} for row in content["rollout"]]
    try:
        text = json.dumps(content | {"rollout": found}, indent=1, allow_nan=False)
    except ValueError as error:
        what = f"the prompts in {content['model']['source']} are so large that their lengths are not finite"
        raise UsageError(what, "use the checkpoint of another epoch, or train again") from error
    drawn = {picture.name: file for picture, file in draw(content, folder)}
    sections = [
        {
            "name": picture.name,
            "title": picture.title,
            "caption": picture.caption if picture.name in drawn else ABSENT[picture.name],
            "address": svg(drawn[picture.name]) if picture.name in drawn else "",
        }
        for picture in PICTURES
    ]
    if content["features"]:
        sections[-1]["caption"] += f"Marks are {content['features']['marks_are']}."
    model, words = content["model"], content["words"]
    facts = {key: model[key] for key in ("source", "backbone", "dataset")}
    facts |= {"settings": ", ".join(f"{key} {value}" for key, value in model["settings"].items())}
    facts |= {"classes": ", ".join(model["classes"]), "images": content["images"]}
    page = render(
        Path(__file__).with_name("page.html"),
        model=model,
        facts={key: value for key, value in facts.items() if value != ""},
        sections=sections,
        words=words[:MOST_WORDS],
        hidden=max(0, len(words) - MOST_WORDS),
        by_class=any(row["class"] is not None for row in words),
    )
    write_text(folder / "inspect.json", text + "\n")
    write_text(folder / "inspect.html", page)


def svg(file: Path) -> str:
    return f"data:image/svg+xml;base64,{b64encode(file.read_bytes()).decode()}"
