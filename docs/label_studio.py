"""A back end for Label Studio: a model suggests a class for each image (docs/labelling.md)."""

import argparse
import os
from typing import Any
from urllib.parse import urljoin

import requests
import uvicorn
from fastapi import FastAPI, HTTPException
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import PredictionValue

from common.errors import UsageError
from inference.load import load

LARGEST = 32_000_000  # bytes of an image


def image_at(address: str, studio: str, key: str) -> bytes:
    """The content of an image of Label Studio. Nothing is read from another server."""
    address = urljoin(studio, address)
    if not address.startswith(studio):
        raise HTTPException(422, f"{address} is not below {studio}")
    asked: dict[str, Any] = {"headers": {"Authorization": f"Token {key}"}, "timeout": 60}
    with requests.get(address, allow_redirects=False, stream=True, **asked) as answer:
        answer.raise_for_status()
        return answer.raw.read(LARGEST + 1, decode_content=True)


def suggestion(
    interface: LabelInterface, version: str, name: str, probability: float
) -> dict[str, Any]:
    """A class as Label Studio has it: a choice for the image."""
    control, image, _ = interface.get_first_tag_occurence("Choices", "Image")
    region = {"from_name": control, "to_name": image, "type": "choices"}
    region["value"] = {"choices": [name]}
    facts: dict[str, Any] = {"score": probability, "model_version": version}
    prediction = PredictionValue(result=[region], **facts).model_dump()
    if not interface.validate_prediction(prediction):
        raise HTTPException(422, f"{name} is not one of the choices: they must be the class names")
    return prediction


def application(classifier: Any, studio: str, key: str) -> FastAPI:
    """The requests of Label Studio."""
    app = FastAPI()
    version = f"{classifier.method}, {classifier.description.training.get('date', 'no date')}"

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP"}

    @app.post("/setup")
    def setup() -> dict[str, str]:
        return {"model_version": version}

    @app.post("/predict")
    def predict(asked: dict[str, Any]) -> dict[str, Any]:
        interface = LabelInterface(asked["label_config"])
        *_, column = interface.get_first_tag_occurence("Choices", "Image")
        images = [image_at(task["data"][column], studio, key) for task in asked["tasks"]]
        try:
            tops = classifier.predict(images).top(1)
        except UsageError as error:
            raise HTTPException(422, str(error)) from error
        results = [suggestion(interface, version, *pair) for (pair,) in tops]
        return {"results": results, "model_version": version}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=9090)
    args = parser.parse_args()
    place = os.environ["LABEL_STUDIO_URL"].rstrip("/") + "/"
    served = application(load(args.model), place, os.environ["LABEL_STUDIO_API_KEY"])
    uvicorn.run(served, port=args.port)
