"""Writes archives, valid and invalid ones."""

import io
import tarfile
import zipfile


def tar(path, members, mode="w:gz"):
    """Members are {name: bytes, or (type, link target)}."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path, members, kinds=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = dict(kinds).get(name, 0) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path
