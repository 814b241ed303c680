"""Formats of files that hold texts which the zoo doesn't read, by their first bytes or their ending.

Read as plain text, compressed bytes or a table's would be trained on.
"""

import os

from zoo.errors import UserError

READABLE = "text, .jsonl (field `text`), .gz, .xz, .tar, .zip"
HEAD = 512  # bytes that tell a format

SIGNATURES = {  # first bytes
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh": "bzip2",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x8b\x08": "gzip, whose name ends in .gz",
    b"\xfd7zXZ\x00": "xz, whose name ends in .xz",
    b"PK\x03\x04": "zip, whose name ends in .zip",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"FEA1": "Feather",
    b"Obj\x01": "Avro",
    b"SQLite format 3\x00": "SQLite",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"%PDF-": "PDF",
}
ENDINGS = {
    **dict.fromkeys((".zst", ".zstd"), "Zstandard"),
    **dict.fromkeys((".bz2", ".tbz", ".tbz2"), "bzip2"),
    **{".7z": "7-Zip", ".rar": "RAR", ".lz4": "LZ4", ".lzma": "LZMA", ".br": "Brotli"},
    **{".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Feather", ".orc": "ORC", ".avro": "Avro"},
    **{".pdf": "PDF", ".docx": "Word", ".odt": "OpenDocument", ".epub": "EPUB"},
}
AMBIGUOUS = {b"BZh": b"1AY&SY", b"PAR1": b"\x00", b"FEA1": b"\x00"}
"""Signatures that are letters, with bytes that stand near them and in no text."""
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def check_format(name: str, head: bytes) -> None:
    """Raises UserError for a file of a format that isn't read."""
    kind = ENDINGS.get(os.path.splitext(name)[1].lower()) or _by_signature(head)
    if kind:
        raise UserError(f"{name} is {kind}, which isn't read: expected {READABLE}")


def _by_signature(head: bytes) -> str:
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature) and AMBIGUOUS.get(signature, b"") in head[:HEAD]:
            return kind
    return "tar, whose name ends in .tar" if head[257:262] == b"ustar" else ""


def encoding(head: bytes) -> str:
    """UTF-16 or UTF-32, if a text begins with its byte order mark and has NUL bytes; else ""."""
    names = (name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark) and b"\0" in head)
    return next(names, "")
