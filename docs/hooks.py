"""Hooks of MkDocs: pages of the project that lie outside docs/, the notebook, and links to them.

Links to code become plain text.
"""

import base64
import json
import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "CONTRIBUTING",
    "CHANGELOG",
    "SECURITY",
    "benchmarks/README",
    "benchmarks/RESULTS",
    "clip/small",
    "toolbox/README",
)
OUTSIDE = {f"{name}.md": f"project/{name}.md" for name in PAGES}  # in the project: on the site
OUTSIDE["README.md"] = "index.md"
OUTSIDE["docs/first_hour.ipynb"] = "first_hour.md"
OUTSIDE["clip/small_curves.png"] = "project/clip/small_curves.png"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files, config):
    for path, uri in OUTSIDE.items():
        if path.endswith(".ipynb"):
            text, pictures = notebook(json.loads((ROOT / path).read_text()))
            for name, content in {uri: text, **pictures}.items():
                files.append(File.generated(config, name, content=content))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def notebook(content):
    """The cells of a notebook and their outputs as Markdown, and its pictures by their names."""
    parts = []
    pictures = {}
    for cell in content["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", ()))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                name = f"first_hour_{len(pictures)}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![The picture that the cell above shows]({name})")
    return "\n\n".join(parts), pictures


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
    if "://" in target or not path or (image and source.endswith(".ipynb")):
        return link[0]
    place = os.path.normpath(os.path.join(os.path.dirname(source), path))
    place = OUTSIDE.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else "")
    if not place or not place.endswith((".md", ".csv", ".jpg", ".png", ".svg")):
        if not (ROOT / os.path.dirname(source) / path).exists():
            raise FileNotFoundError(f"{source} links to {target}, which does not exist")
        return text
    return f"{image}[{text}]({os.path.relpath(place, os.path.dirname(uri) or '.')}{mark}{anchor})"
