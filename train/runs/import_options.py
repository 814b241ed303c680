"""What the keys of `zoo import` may be; read before anything large is imported."""

PREFIXES = ("config.", "task.", "data.")
PADDED = "padded"
NO_TOKENIZER = "none"
