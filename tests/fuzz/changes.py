"""Changes to bytes and to trees of plain values, chosen by a random generator."""

import math
import struct
from collections.abc import Callable, Iterator
from datetime import date
from functools import reduce
from operator import getitem
from random import Random
from typing import Any

OUTSIDE = "../outside/"  # from the folder of a case: nothing may change there
NAMES = ["", " ", ".", "..", "/", "~nosuchuser/x", "a\0b", "a\nb", "a\x1b[2J", "\udcff", "{}", "%s", "-rf", "null"]
NAMES += ["é" * 300, "x" * 5000, "/dev/zero", "/dev/full", "/dev/stdin", "/proc/self/mem", "no/such/file", "__class__"]
NAMES += ["1e9", OUTSIDE + "made", OUTSIDE + "kept", "../../../" + OUTSIDE + "kept"]
NUMBERS = [0, 1, -1, 2, 7, 255, 65536, 2**31, -(2**31) - 1, 2**33, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30)]
NUMBERS += [math.nan, math.inf, -math.inf, 1e-320, 1e308, 0.5, -0.0]
INTEGERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)  # sizes and places in headers
DROP = object()
UNCHANGED = 0.04  # share of the inputs that stay valid: they must be accepted, or the others show nothing


def stays(rng: Random) -> bool:
    return rng.random() < UNCHANGED


def nested(rng: Random) -> Any:
    """Lists or mappings in one another, up to far beyond what a parser's recursion allows."""
    depth, value = rng.choice([3, 30, 300, 900, 3000]), None
    for _ in range(depth):
        value = {"a": value} if depth % 9 else [value]
    return value


def hostile(rng: Random) -> Any:
    """A value that is likely to be wrong wherever it stands; of kinds that YAML and pickle can hold."""
    plain = (None, True, False, [], {}, (), [[]], b"\xff\x00", date(2024, 2, 29), {"a": 1}, 10**5000)
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NAMES),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(plain),
        lambda: [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 1000)))],
        lambda: {rng.choice(NAMES): rng.choice(NUMBERS) for _ in range(3)},
        lambda: nested(rng),
    ]
    return rng.choice(kinds)()


def near(rng: Random, old: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        number = rng.choice([*NUMBERS, old * 2, -old, old + 1])
        return number if isinstance(old, float) or not isinstance(number, float) else int(old) + 1
    if isinstance(old, str):
        return rng.choice([*NAMES, old.upper(), old * 2, old[:-1]])
    if isinstance(old, list | tuple):
        items = [near(rng, item) for item in old if not isinstance(item, list | tuple)]
        return type(old)(rng.choice([old[:1], old[:-1], old[::-1], [*old, *old], items]))
    return old


# Trees


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in nested dicts, lists and tuples."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items if len(path) < 30 else ():
        yield from places(value, (*path, key))


def with_value(tree: Any, path: tuple, value: Any) -> Any:
    """A copy of the tree with the value at the path; DROP removes what is there."""
    if not path:
        return value
    key, *rest = path
    new = with_value(tree[key], tuple(rest), value)
    if isinstance(tree, dict):
        return type(tree)((k, new if k == key else v) for k, v in tree.items() if not (k == key and new is DROP))
    return type(tree)(new if k == key else v for k, v in enumerate(tree) if not (k == key and new is DROP))


def renamed(tree: Any, rng: Random) -> Any:
    """A mapping with another key; anything else as a text or a truth value, or in a list or a mapping."""
    if isinstance(tree, dict) and tree:
        old, new = rng.choice(list(tree)), rng.choice([*NAMES, 1, None, True, ("a",)])
        return type(tree)((new if key is old else key, value) for key, value in tree.items())
    try:
        return rng.choice([str, bool, lambda value: [value], lambda value: {str(value): value}])(tree)
    except (ValueError, RuntimeError):  # a number of too many digits, or a tensor
        return None


def change_tree(rng: Random, tree: Any, value: Callable[[Random], Any] = hostile) -> Any:
    """A copy of the tree with one to three changes. `value(rng)` makes the values that are put in."""
    if stays(rng):
        return tree
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(tree))
        path, other = (rng.choice(found) for _ in range(2))
        if rng.random() < 0.5:  # near the root, where there are few
            path = rng.choice([place for place in found if len(place) <= 2])
        old = reduce(getitem, path, tree)
        changes: list[Callable[[], Any]] = [
            lambda: DROP,
            lambda: value(rng),
            *[lambda old=old: near(rng, old)] * 2,
            lambda old=old: renamed(old, rng),
            lambda tree=tree, other=other: reduce(getitem, other, tree),
            lambda old=old: {**old, rng.choice(NAMES): value(rng)} if isinstance(old, dict) else [old],
        ]
        tree = with_value(tree, path, rng.choice(changes)())
        if not path:
            return None if tree is DROP else tree
    return tree


# Bytes


def position(rng: Random, data: bytes) -> int:
    """Often in the first or the last 600 bytes, where formats have their headers and directories."""
    near = min(600, len(data))
    return rng.choice((rng.randrange(len(data) + 1), rng.randrange(near + 1), len(data) - rng.randrange(near + 1)))


def change_bytes(rng: Random, data: bytes) -> bytes:
    """One to three changes: flipped bits, lost, repeated, exchanged or foreign bytes, a cut-off end."""
    if stays(rng):
        return data
    for _ in range(rng.choice((1, 1, 2, 3))):
        here, there = sorted((position(rng, data), position(rng, data)))
        there = min(there, here + rng.choice((1, 2, 4, 8, 100, len(data))))
        size, start, end = there - here, data[:here], data[there:]
        number = struct.pack(rng.choice("<>") + "Q", rng.choice(INTEGERS))[: rng.choice((2, 4, 8))]
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in data[here : here + 1])
        data = rng.choice(
            [
                start + flipped + data[here + 1 :],
                start,
                start + end,
                data[:there] + data[here:],
                start + rng.randbytes(size) + end,
                start + rng.choice((b"\0", b"\xff", b"\x80", b"9", b"A")) * size + end,
                start + number + data[here + len(number) :],
                rng.choice((b"", b"\n", rng.randbytes(40), data[here:], data[here:there])),
            ]
        )
    return data
