"""Tables on a terminal."""

WIDE = 180  # columns where nobody looks at a terminal
