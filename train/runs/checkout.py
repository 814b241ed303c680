"""The commit of the checkout that the zoo runs from; needs nothing but Python and git."""

import subprocess
from pathlib import Path

import zoo


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it; "" where the zoo isn't a checkout."""
    root = Path(zoo.__file__).parent.parent

    def git(*args: str) -> str:
        return subprocess.run(
            ("git", *args), cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
