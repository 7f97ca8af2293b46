"""Cases of archives of datasets, and of the answers of the server that they come from."""

from functools import cache
from pathlib import Path
from random import Random

from archives import tar, zipped

from .cases import LINKS, SPECIAL, Case, kind, sometimes_special
from .changes import NAMES, change_bytes
from .corpus import BASE, PACKED
from .pickles import change_zip

FOLDERS = {"imagenet_r": "imagenet-rendition", "caltech101": "caltech-101"}  # those with another name


@cache
def archives(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(BASE, "packed", name).iterdir()}


def crafted_archive(rng: Random) -> bytes:
    """A tar or zip archive of hostile names, links, devices, or far too much."""
    names = [name for name in NAMES if name and "\0" not in name and name != "\udcff" and len(name) < 999]
    names += ["2750/a.jpg", "dtd/images/x/y.jpg"]
    members: dict = {rng.choice(names): rng.choice((b"", b"x" * 99, bytes(10**7))) for _ in range(3)}
    if rng.random() < 0.5:
        kinds = {name: rng.choice((0, 0o120777, 0o20644, 0o100644)) for name in members}
        return zipped(Path("archive"), members, kinds).read_bytes()
    for name in list(members)[:1]:
        members[name] = (rng.choice((b"1", b"2", b"3", b"6", b"x", b"L", b"S")), rng.choice(names))
    return tar(Path("archive"), members, rng.choice(("w:gz", "w"))).read_bytes()


def preparation(rng: Random, name: str, files: dict[str, bytes], source: list[str]) -> Case:
    """tools/prepare.py with these files on the server or in a folder, now and then where somebody has put a link."""
    case = Case("prepare", [name, "--root", "data", *source])
    if rng.random() < 0.06:
        work = f"data/{FOLDERS.get(name, name)}/.preparing"
        file = rng.choice(sorted(files))
        names = ("", ".lock", "/unpacked", f"/{file}", f"/{file}.partial", f"/unpacked/{FOLDERS.get(name, name)}")
        case.files[work + rng.choice(names)] = rng.choice((*LINKS, *SPECIAL))
    if source[0] == "--from":
        case.files |= {f"given/{file}": sometimes_special(rng, content) for file, content in files.items()}
    else:
        case.served = {f"/{name}/{file}": content for file, content in files.items()}
    return case


@kind("data archive", share=7)
def data_archive(rng: Random) -> Case:
    name = rng.choice(PACKED)
    files = dict(archives(name))
    changed = rng.choice(sorted(files))
    before, how = files[changed], rng.random()
    if how < 0.3 and changed.endswith(".zip"):
        files[changed] = change_zip(rng, before)
    elif how < 0.75:
        files[changed] = change_bytes(rng, before)
    else:
        files[changed] = crafted_archive(rng) if how < 0.9 else files[rng.choice(sorted(files))]
    return preparation(rng, name, files, rng.choice((["--from", "given"], ["--mirror", "{server}"])))


# Answers

STATUS = ["200 OK", "206 Partial Content", "416 Range Not Satisfiable", "302 Found", "301 x", "100 Continue", "200"]
STATUS += ["429 Too Many", "503 Busy", "204 No Content", "404 Not Found", "999 x", "0 x", "-1 x", "\xb2 OK", ""]
STATUS += ["9" * 5000, "101 Switching"]
LENGTHS = ["0", "1", "-1", "5", "{size}", "{size}, {size}", "\xb2", "1e3", "0x10", " ", "+3", "9" * 14, "9" * 5000]
RANGES = ["bytes 0-9/{size}", "bytes 5-1/2", "bytes \xb2-3/\xb2", "bytes */{size}", "x", "/", "bytes 0-" + "9" * 5000]
TYPES = ["text/html", "application/octet-stream", "\xff", "text/html; charset=\0", "multipart/byteranges; boundary=a"]
PLACES = ["{server}/eurosat/EuroSAT.zip", "http://[::1/", "http://[", "file:///etc/passwd", "//", "", "\xff"]
PLACES += ["x" * 9000, "gopher://a/", "ftp://a/"]
HEADERS = {
    "Content-Length": LENGTHS,
    "Content-Range": RANGES,
    "Content-Type": TYPES,
    "Content-Encoding": ["gzip", "br", "deflate, gzip", "identity", "x"],
    "Transfer-Encoding": ["chunked", "gzip, chunked", "x", "chunked, chunked"],
    "Location": PLACES,
    "Retry-After": ["0", "99999999", "-1", "x", "Fri, 31 Dec 9999 23:59:59 GMT"],
    "Set-Cookie": ["a=b", "=" * 5000, "a=b; expires=x"],
    "Connection": ["close", "keep-alive", "x"],
}
# Of tests/serving.py.
FAULTS = ["not found", "busy", "quota page", "no ranges", "short range", "cut off in a chunk", "too long", "cut off"]


def answer(rng: Random, content: bytes) -> bytes | str:
    """A whole answer with nonsense in its status, headers or body; or a fault that tests/serving.py knows."""
    if rng.random() < 0.25:
        return rng.choice(FAULTS)
    status = rng.choice(STATUS) if rng.random() < 0.6 else "200 OK"
    lines = [f"HTTP/1.{rng.choice('1111109')} {status}"]
    for name in rng.sample(sorted(HEADERS), rng.choice((1, 2, 3))):
        lines.append(f"{name}: {rng.choice(HEADERS[name])}".replace("{size}", str(len(content))))
    if rng.random() < 0.1:
        wrong = ("no colon", ": x", "\tfolded", "X" * 70000, "A: " + "x" * 70000, "a: \0", "b: c", "b: c")
        lines.append(rng.choice(wrong))
    chunked = (b"5\r\nabcde\r\n0\r\n\r\n", b"ffffffffff\r\n")
    body = rng.choice((content, content[: len(content) // 2], content + b"x", b"", *chunked))
    whole = "\r\n".join(lines).encode("latin-1", errors="replace") + b"\r\n\r\n" + body
    return change_bytes(rng, whole) if rng.random() < 0.2 else whole


@kind("server answer", share=7)
def answers(rng: Random) -> Case:
    name = rng.choice(("eurosat", "imagenet_r"))
    files = archives(name)
    case = preparation(rng, name, files, ["--mirror", "{server}"])
    case.answers = [answer(rng, rng.choice(list(files.values()))) for _ in range(rng.choice((1, 2, 8, 40)))]
    if rng.random() < 0.5:
        case.answers.insert(0, "")
    if rng.random() < 0.2 and not case.files:  # a download that was cut off before
        largest = max(files, key=lambda file: len(files[file]))
        start = files[largest][: rng.randrange(len(files[largest]))]
        case.files[f"data/{FOLDERS.get(name, name)}/.preparing/{largest}.partial"] = start
    return case
