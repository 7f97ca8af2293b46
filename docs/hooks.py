"""Hooks of MkDocs: pages of the project that lie outside docs/, and links to them; links to code become plain text."""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING", "CHANGELOG", "SECURITY", "benchmarks/README", "clip/small", "toolbox/README")
OUTSIDE = {f"{name}.md": f"project/{name}.md" for name in PAGES}  # in the project: on the site
OUTSIDE["README.md"] = "index.md"
OUTSIDE["clip/small_curves.png"] = "project/clip/small_curves.png"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files, config):
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of a page, outside its code blocks."""
    uri = page.file.src_uri
    source = next((path for path, place in OUTSIDE.items() if place == uri), f"docs/{uri}")
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [LINK.sub(lambda link: rewritten(link, source, uri), part) for part in parts[::2]]
    return "".join(parts)


def rewritten(link, source, uri):
    """A link of the file `source`, which is the page `uri` of the site."""
    image, text, target = link.groups()
    path, mark, anchor = target.partition("#")
    if "://" in target or not path:
        return link[0]
    place = os.path.normpath(os.path.join(os.path.dirname(source), path))
    place = OUTSIDE.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else "")
    if not place or not place.endswith((".md", ".jpg", ".png", ".svg")):
        if not (ROOT / os.path.dirname(source) / path).exists():
            raise FileNotFoundError(f"{source} links to {target}, which does not exist")
        return text
    return f"{image}[{text}]({os.path.relpath(place, os.path.dirname(uri) or '.')}{mark}{anchor})"
