"""What tests do with a key: write it in one go, read all of it."""

from batchmill.blobs.blobs import Blobs, Written

EVER = float("inf")


def put(blobs: Blobs, key: str, data: bytes = b"abc") -> Written:
    """Write a key."""
    writer = blobs.writer(key)
    try:
        writer.write(data)
        return writer.finish()
    finally:
        writer.discard()


def content(blobs: Blobs, key: str) -> bytes:
    """Read a whole key."""
    with blobs.open(key) as stream:
        return stream.read()
