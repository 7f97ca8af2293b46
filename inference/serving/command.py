"""The command `python tools/serve.py`: a page in the browser to try models on."""

import argparse
import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

from common.files import scratch
from common.start import Parser, at_least, path, required_packages

from ..arguments import (
    MODELS,
    add_calibration_options,
    add_model_options,
    check_exists,
    load_options,
)

if TYPE_CHECKING:
    from ..load import Model
    from .server import Server

REQUIREMENTS = "requirements-serve.txt"
OF_API = "requirements-api.txt"
MOST_EXAMPLES = 8
# Begins the name of a folder that may be deleted: no user calls a model so
UPLOADS = "mpl-serve.partial-"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Serve a page in the browser: drop an image, compare the probabilities of all "
        "models, edit the class names, see where the models look.",
        usage="%(prog)s [options] [MODEL ...] [--classes NAME ...]",
        epilog=f"{MODELS} Without a MODEL, --backbone and --classes give zero-shot CLIP. Ctrl-C "
        "ends the server. It has no password: whoever reaches the host and port can use it.",
    )
    add = parser.add_argument
    add("models", type=path, nargs="*", metavar="MODEL")
    add_address_options(parser)
    text = "a reverse proxy, or its network: it says the names of this server; may be repeated"
    add("--proxy", type=network, action="append", default=[], metavar="ADDRESS", help=text)
    text = "answer JSON over HTTP instead: see /openapi.json there"
    add("--api", action="store_true", help=text)
    text = "images, or their folders"
    add("--examples", type=path, nargs="+", default=[], metavar="PATH", help=text)
    add_calibration_options(parser)
    add_model_options(parser)
    args = parser.parse_intermixed_args(argv)
    if args.api and (len(args.models) > 1 or args.examples):
        parser.error("--api serves one MODEL, without --examples")
    return args


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Add --host and --port."""
    text = "address to listen at (default: 127.0.0.1, this machine)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    text = "port to listen at (default: 7860)"
    parser.add_argument("--port", type=at_least(1, 65535), default=7860, help=text)


def network(text: str) -> str:
    """The argparse type of an address or a network, as text."""
    try:
        return str(ip_network(text))
    except ValueError as error:
        expected = "expected an address, or a network such as 10.0.0.0/8"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}") from error


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    options = load_options(args, calibration=True if args.unknown or args.sets else None)
    names = options.class_names
    for model in args.models:
        check_exists(model)
    with scratch(Path(gettempdir()), UPLOADS) as uploads:
        # Gradio reads these when it is imported: nothing is reported to anyone, uploads go to one
        # folder.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        with required_packages():
            from ..images import find_images
            from ..load import open_models
        with required_packages(OF_API if args.api else REQUIREMENTS):
            from .server import address_of, serve
        files = find_images(args.examples) if args.examples else []
        opened = open_models(args.models, options)
        for model in opened:
            model.classifier.check_asked(args.unknown, args.sets, names or None)
            if names:
                model.classifier.model_for(names)  # reports their faults before the page does
        where = address_of(args.host, args.port)
        greeting = f"POST images to http://{where}/predict (OpenAPI: /openapi.json)."
        if not args.api:
            if args.host in ("0.0.0.0", "::"):
                where = f"localhost:{args.port}"
            greeting = f"Open http://{where}/ in a browser."
        serve(server_of(args, opened, names, files), args.host, args.port, greeting)


def server_of(
    args: argparse.Namespace, models: Sequence["Model"], names: Sequence[str], files: Sequence[Path]
) -> "Server":
    """The server of the API or of the page, with examples among these files."""
    from datasets.base import spread

    with required_packages(OF_API if args.api else REQUIREMENTS):
        from .server import Server

        if args.api:
            from .api import application
            from .service import Service
        else:
            from .page import Page
    classifier = models[0].classifier
    if args.api:
        service = Service([classifier], names or None, args.sets)
        return Server(application(service), args.host, args.proxy)
    examples = spread(files, MOST_EXAMPLES)
    page = Page(models, names or classifier.class_names, examples, args.unknown, args.sets)
    return Server(page.application(), args.host, args.proxy, grace=0)
