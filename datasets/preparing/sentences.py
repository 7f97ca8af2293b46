"""`tools/prepare.py sentences`: does a file of sentences have the classes of a dataset?"""

from collections.abc import Iterable
from pathlib import Path

from common.errors import UsageError, suggestion
from common.files import checksum
from common.names import plain

from ..sentences import read
from .own_images import listed

POSITIONS = 77  # of CLIP's text tower; the start and the end of a text take two


def compare(file: Path, names: Iterable[str]) -> None:
    """Print what a file has for the classes with these names, and which sentences CLIP reads in part.

    Raises:
        UsageError: classes are missing or unknown; or as for `datasets.sentences.read`.
    """
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds

    sentences, classes = read(file), [plain(name) for name in names]
    known = {plain(name): texts for name, texts in sentences.items()}
    print(f"{checksum(file)}  {file}")
    print(f"{sum(map(len, known.values())):,} sentences for {len(known):,} classes; the dataset has {len(classes):,}")
    tokenizer = SimpleTokenizer()
    long = [text[:60] for texts in known.values() for text in texts if len(tokenizer.encode(text)) + 2 > POSITIONS]
    if long:
        print(f"{len(long):,} have more than {POSITIONS} tokens, of which CLIP reads the first ones: {listed(long)}")
    missing = [name for name in dict.fromkeys(classes) if not known.get(name)]
    unknown = [name for name in known if name not in classes]
    if missing:
        print(f"{len(missing):,} classes without sentences have the template: {listed(missing)}")
    if unknown:
        print(f"{len(unknown):,} are not classes of the dataset: {listed(unknown)}{suggestion(unknown[0], missing)}")
    if missing or unknown:
        what = f"{file} lacks {len(missing):,} classes, and has {len(unknown):,} unknown ones"
        raise UsageError(what, "name the classes as the dataset does", file)
