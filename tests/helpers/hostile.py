"""Hostile content for the readers of files: strategies of hypothesis."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import torch
import yaml
from hypothesis import strategies as st
from pyarrow import parquet

NAMES = [
    "",
    " ",
    "..",
    "/",
    "~nosuchuser/x",
    "a\0b",
    "a\nb",
    "a\x1b[2J",
    "\x9b2J",
    "\ufeffa",
    "{}",
    "%s",
    "null",
]
NAMES += [
    "x" * 5000,
    "/dev/zero",
    "/proc/self/mem",
    "no/such/file",
    "__class__",
    "../outside/kept",
    "../outside/made",
]
NUMBERS = [
    0,
    1,
    -1,
    2,
    255,
    2**31,
    -(2**31) - 1,
    2**53 + 1,
    2**64,
    10**30,
    float("nan"),
    float("inf"),
    1e-320,
    1e308,
]
TEXTS = [
    "",
    "[" * 9000,
    '{"a":' * 3000,
    "NaN",
    "1" * 5000,
    "null",
    '"\\ud800"',
    "\x00",
    "\ud800",
    "- " * 2000,
]
TEXTS += [
    "a: !!python/object/apply:os.system ['touch ../outside/made']",
    "OPTIM: &a\n  LR: *a",
    "? [a, b]\n: c",
    "*a",
]
TEXTS += [
    "!!python/object/new:type {args: [z, [], {}], state: !!python/name:exec }",
    "OPTIM: {LR: !!timestamp x}",
]
TEXTS += [
    "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(10)),
    "--- a\n--- b",
]
TEXTS += [
    f"_BASE_: {name}"
    for name in ("/dev/zero", "'a\\0b'", "[]", "config.yaml", "{a: b}", "../outside/kept")
]
SPECIAL = ("pipe", "folder", "loop", "broken", "outside", "/dev/zero", "/dev/full", "empty")
VALUES = st.recursive(
    st.sampled_from([None, True, False, b"\xff", *NAMES, *NUMBERS]) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=5,
)


class Calling:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


CALLS = [Calling(os.system, "touch ../outside/made"), Calling(exec, "open('../outside/made', 'w')")]
CALLS += [
    Calling(torch.from_file, "../outside/kept", True, 4),
    Calling(os.mkdir, "../outside/made"),
]


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in nested dicts, lists and tuples."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list | tuple)
        else ()
    )
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def replaced(tree: Any, path: tuple, change: Any) -> Any:
    """A copy of the tree with `change(value)` at the path."""
    if not path:
        return change(tree)
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    changed = {
        key: replaced(value, path[1:], change) if key == path[0] else value for key, value in pairs
    }
    return changed if isinstance(tree, dict) else list(changed.values())


@st.composite
def changed_tree(draw, tree: Any, values: st.SearchStrategy = VALUES) -> Any:
    """A copy of the tree in which one value is another one, or is gone, doubled or under another
    key.
    """
    path = draw(st.sampled_from(places(tree)))
    how = draw(st.sampled_from(("value", "value", "key", "gone", "twice")))
    key = draw(st.sampled_from([*NAMES, 1, None]))

    def change(old: Any) -> Any:
        if how == "key" and isinstance(old, dict) and old:
            first = next(iter(old))
            return {key if name == first else name: value for name, value in old.items()}
        if how in ("gone", "twice") and isinstance(old, list | dict | str | tuple):
            return (
                type(old)()
                if how == "gone"
                else [*old, *old]
                if not isinstance(old, str)
                else old * 2
            )
        return draw(values)

    return replaced(tree, path, change)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """One flipped bit, or lost, repeated or foreign bytes; often near the ends, where formats have
    their headers.
    """
    size = max(len(data), 1)
    here = draw(st.integers(0, size - 1) | st.integers(0, min(600, size) - 1)) % size
    here = draw(st.sampled_from((here, size - 1 - here)))
    there = min(size, here + draw(st.sampled_from((1, 4, 100, size))))
    number = struct.pack(
        "<Q", draw(st.sampled_from((0, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)))
    )
    flipped = bytes([(data[here] if data else 0) ^ 1 << draw(st.integers(0, 7))])
    middle = draw(
        st.sampled_from(
            (flipped, flipped, None, b"", data[here:there] * 2, b"\t" * 9, number, b"\xff" * 99)
        )
    )
    if middle is None:
        return data[:here]
    return data[:here] + middle + data[here + 1 if middle == flipped else there :]


def tensors(like: torch.Tensor) -> st.SearchStrategy:
    """Other tensors than this one, and values that pretend to be one."""
    whole = like.float()
    other = [
        like.double(),
        like.bool(),
        whole.to(torch.complex64),
        torch.full_like(whole, float("nan")),
        whole[None],
    ]
    other += [
        torch.full_like(whole, 1e38),
        whole.reshape(-1),
        torch.zeros(1).expand(2**40, 1),
        whole.to_sparse(),
    ]
    other += [
        torch.empty(whole.shape, device="meta"),
        whole.tolist(),
        whole.numpy(),
        torch.nn.Parameter(whole),
    ]
    return st.sampled_from(other) | st.sampled_from(CALLS) | VALUES


def saved(tree: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(tree, buffer, pickle_module=pickle)
    except (ValueError, OverflowError, RuntimeError):  # not everything can be saved
        torch.save({}, buffer)
    return buffer.getvalue()


@st.composite
def changed_archive(draw, data: bytes) -> bytes:
    """A zip archive (a checkpoint, predictions.npz) in which a member is changed; its checksums are
    right.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = draw(st.sampled_from(sorted(members)))
    how = draw(st.sampled_from(("damaged", "renamed", "gone", "large")))
    content = members.pop(name)
    if how != "gone":
        content = (
            bytes(10**8)
            if how == "large"
            else draw(damaged(content))
            if how == "damaged"
            else content
        )
        members[
            f"{name.partition('/')[0]}/{draw(st.sampled_from(NAMES))}" if how == "renamed" else name
        ] = content
    packing = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for member, content in members.items():
            archive.writestr(member.replace("\0", "_"), content)
    return (
        buffer.getvalue()
        if how != "damaged" or draw(st.booleans())
        else draw(damaged(buffer.getvalue()))
    )


# Columns of other types and values, by the number of rows
COLUMNS = (
    lambda rows: pyarrow.nulls(rows, pyarrow.string()),
    lambda rows: pyarrow.array(["x\x1b\n" * 100] * rows),
    lambda rows: pyarrow.array([""] * rows),
    lambda rows: pyarrow.array([b"\xff"] * rows),
    lambda rows: pyarrow.array([2**62] * rows),
    lambda rows: pyarrow.array([float("nan")] * rows),
    lambda rows: pyarrow.array([[1.0, None]] * rows),
    lambda rows: pyarrow.FixedSizeListArray.from_arrays(pyarrow.array([0.0] * 3 * rows), 3),
    lambda rows: pyarrow.array([{"a": [1]}] * rows),
)


@st.composite
def changed_table(draw: Any, table: Any) -> bytes:
    """A table as Parquet without a column, with another one, in another order, or without rows."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, table.num_columns - 1))
        name = table.schema.names[place]
        how = draw(st.sampled_from(("drop", "change", "turn", "cut", "facts")))
        if how == "drop" and table.num_columns > 1:
            table = table.remove_column(place)
        elif how == "change":
            table = table.set_column(place, name, draw(st.sampled_from(COLUMNS))(len(table)))
        elif how == "turn":
            values = table[name].take(list(range(len(table)))[::-1])
            table = table.set_column(place, name, values)
        elif how == "cut":
            table = table.slice(0, draw(st.integers(0, 1)))
        else:
            facts = draw(st.sampled_from((b"[" * 100_000, b"{}", b"\xff", b"null")))
            table = table.replace_schema_metadata({b"embed": facts, b"predict": facts})
    parquet.write_table(table, content := io.BytesIO())
    return content.getvalue()


def content_of(file: Path) -> st.SearchStrategy:
    """Other content for a file, by its kind: bytes, or the name of a special file."""
    data = file.read_bytes()
    any_file = damaged(data) | st.sampled_from(
        [text.encode(errors="surrogatepass") for text in TEXTS]
    )
    pickles = st.sampled_from(
        [pickle.dumps(call) for call in CALLS] + [saved(call) for call in CALLS]
    )
    if file.suffix == ".yaml":
        own = changed_tree(yaml.safe_load(data)).map(as_yaml)
    elif file.suffix == ".json":
        own = changed_tree(json.loads(data)).map(as_json)
    elif file.suffix in (".npz", ".zip"):
        own = changed_archive(data)
    elif file.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", data[:8])
        headers = changed_tree(json.loads(data[8 : 8 + length])).map(as_json)
        own = headers.map(
            lambda header: struct.pack("<Q", len(header)) + header + data[8 + length :]
        )
    elif file.suffix == ".parquet":
        own = changed_table(parquet.read_table(file))
    elif file.suffix == ".pkl":
        own = (
            changed_tree(pickle.loads(data), VALUES | st.sampled_from(CALLS)).map(pickle.dumps)
            | pickles
        )
    elif ".pth.tar" in file.name or file.suffix == ".pt":
        tree = torch.load(file, weights_only=True)
        tensor = next(iter(tree.get("state_dict", tree).values()))
        own = changed_tree(tree, tensors(tensor)).map(saved) | changed_archive(data) | pickles
    else:
        own = any_file
    return own | own | any_file | st.sampled_from(SPECIAL)


def as_yaml(tree: Any) -> bytes:
    return yaml.dump(tree, allow_unicode=True).encode(errors="surrogatepass")


def as_json(tree: Any) -> bytes:
    return json.dumps(tree, default=str, skipkeys=True).encode(errors="surrogatepass")


def put(path: Path, content: bytes | str) -> None:
    """Write the content, or make the special file of this name; a link may lead to `../outside`."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content == "empty":
        path.touch()
    else:
        place = {
            "loop": path.name,
            "broken": "no/such/file",
            "outside": os.path.abspath("../outside/kept"),
        }
        path.symlink_to(place.get(content, content))
