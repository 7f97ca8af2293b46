"""Changes to pickles and to the zip archives that hold them, chosen by a random generator."""

import io
import pickletools
import struct
import zipfile
from random import Random

from weight_files import call, text

from .changes import NAMES, OUTSIDE, change_bytes

BOMB = 2 * 10**7  # bytes of a member that takes 20 kB in its archive


CODE = [
    call("os", "system", f"touch {OUTSIDE}made"),
    call("builtins", "exec", f"open('{OUTSIDE}made', 'w')"),
    call("builtins", "eval", f"open('{OUTSIDE}made', 'w')"),
    call("builtins", "__import__", "antigravity"),
    call("pathlib", "Path.touch", f"{OUTSIDE}made"),
    call("torch.hub", "load", "no/such"),
    call("torch.storage", "_load_from_bytes", "\x80\x02cos\nsystem\n"),
]
OPCODES = [
    *CODE,
    *(b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"]", b"}", b")", b"N", b"\x85", b"\x86", b"R", b"b", b"s", b"u", b"a"),
    *(b"Q", b"e", b"\x81", b"q\x00", b"h\x00", b"j\xff\xff\xff\x7f", b"K\x07", b".", b"\x8a\xff" + b"\x7f" * 255),
    *(b"I" + b"9" * 5000 + b"\n", b"F1e999\n", b"\x8b" + struct.pack("<i", -1), b"\x80\x09", b"]" * 3000, b"(" * 9000),
    *(b"G\x7f\xf8\0\0\0\0\0\0", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x88", b"c" + text("torch", "Tensor")),
    *(b"c" + text("torch", "float64"), b"c" + text("torch._utils", "_rebuild_sparse_tensor")),
    *(b"c" + text("torch._utils", "_rebuild_meta_tensor_no_storage"), b"c" + text("torch.nn.parameter", "Parameter")),
]


def change_pickle(rng: Random, data: bytes) -> bytes:
    """A pickle with opcodes dropped, repeated, exchanged or put in; its other opcodes are unchanged."""
    try:
        starts = [start for _, _, start in pickletools.genops(data)]
    except Exception:  # pickletools raises many kinds for what is not a pickle
        return change_bytes(rng, data)
    parts = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        here, there = (rng.randrange(len(parts)) for _ in range(2))
        kind = rng.randrange(5)
        if kind == 0:
            parts[here] = b""
        elif kind == 1:
            parts[here] += parts[there]
        elif kind == 2:
            parts[here], parts[there] = parts[there], parts[here]
        else:
            parts[here] = rng.choice(OPCODES) + (parts[here] if kind == 3 else b"")
    return b"".join(parts)


# Zip archives


def change_zip(rng: Random, data: bytes) -> bytes:
    """A zip archive with one member dropped, renamed, repeated, exchanged or changed; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    here, there = (rng.randrange(len(members)) for _ in range(2))
    name, content = members[here]
    folder = name.partition("/")[0]
    foreign = f"{folder}/{rng.choice(NAMES)}", rng.choice(NAMES)
    extra = f"{folder}/{rng.choice(('byteorder', 'code/x.py', '.data/x'))}"
    changed: list[list[tuple[str, bytes]]] = [
        [],
        [(rng.choice(foreign), content)],
        [(name, content), (name, members[there][1])],
        [(name, members[there][1])],
        [(name, change_bytes(rng, content))],
        [(name, b"")],
        [(name, content), (extra, b"big")],
        [(name, bytes(BOMB))],
    ]
    members[here : here + 1] = rng.choice(changed)
    for index, (name, content) in enumerate(members):
        if name.endswith(".pkl") and rng.random() < 0.4:
            members[index] = name, change_pickle(rng, content)
        if name.endswith("byteorder") and rng.random() < 0.2:
            members[index] = name, rng.choice((b"big", b"middle", b"\xff", b""))
    return zipped(members, zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED)


def zipped(members: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            bomb = len(content) == BOMB
            info = zipfile.ZipInfo(name.encode(errors="replace").decode()[:1000])
            archive.writestr(info, content, zipfile.ZIP_DEFLATED if bomb else how)
    return buffer.getvalue()
