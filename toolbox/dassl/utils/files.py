"""The checksum of a part of a file."""

import hashlib

BLOCK = 1 << 20  # bytes


def sha256_of(file, length):
    """The SHA-256, an object of hashlib, of the first bytes of a file, which is left at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(BLOCK, length))):
        digest.update(block)
        length -= len(block)
    return digest
