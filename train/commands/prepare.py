"""`zoo prepare data.corpus=<text> tokenizer=<folder> to=<folder>`: a text as token ids.

    data.corpus=    a corpus by its name, or the path of a file or folder of text, as in training
    data.root=      where corpora lie that have a name (default $ZOO_DATA, or data)
    data.field=     the field of the text in rows of JSON (default text)
    tokenizer=      a tokenizer.json of Hugging Face's, or a folder with one
    to=             a new folder, for ids and texts by split, the tokenizer and tokens.json
    start= end=     the ids that open and close a document, none for no such symbol; by default the bos and
                    eos of config.json or tokenizer_config.json beside the tokenizer

`task=token_lm` reads the folder, memory-mapped, and so does `zoo evaluate` of an imported run with this
tokenizer.  Needs the package tokenizers.
"""

import os
from pathlib import Path

from zoo.train.commands.cli import command, integer, parse, text


def symbol(value: str) -> int | None:
    return None if value == "none" else int(integer(least=0)(value))


KEYS = {
    **dict.fromkeys(("data.corpus", "data.root", "data.field", "tokenizer", "to"), text),
    "start": symbol,
    "end": symbol,
}


@command
def main(args: list[str]) -> None:
    options, _ = parse("prepare", args, KEYS, required=("data.corpus", "tokenizer", "to"))
    from zoo.train.corpora.catalog import open_corpus
    from zoo.train.corpora.documents import FIELD
    from zoo.train.corpora.token_files import write_tokens
    from zoo.train.corpora.tokenizer import Tokenizer, special_ids, tokenizer_file
    from zoo.train.runs.files import atomic_folder, require_empty

    folder = Path(options["to"])
    require_empty(folder)
    tokenizer = Tokenizer(tokenizer_file(Path(options["tokenizer"])))
    start, end = special_ids(tokenizer.path)
    root = options.get("data.root", os.environ.get("ZOO_DATA", "data"))
    corpus = open_corpus(options["data.corpus"], root, options.get("data.field", FIELD))
    print(corpus.note)
    with atomic_folder(folder) as unfinished:
        index = write_tokens(
            unfinished, corpus, tokenizer, options.get("start", start), options.get("end", end), print_split
        )
    print(f"{folder}: {index['vocab_size']:,} symbols, start {index['start']}, end {index['end']}")
    print(f"zoo train task=token_lm data.corpus={folder} task.vocab_size={index['vocab_size']} model=…")


def print_split(split: str, documents: int, tokens: int, size: int) -> None:
    print(
        f"{split}: {documents:,} documents, {tokens:,} tokens of {size:,} bytes ({size / tokens:.2f} a token)"
    )
