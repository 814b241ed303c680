"""Files in bAbI's format, and their questions read independently of the task."""

import numpy as np

LOCATIONS = ("garden", "bathroom", "office", "hallway")
PEOPLE = ("Ada", "Bo", "Cy")
MOVES = ("went", "moved", "went back")
FEW_QUESTIONS = (
    "1 Ada gave the milk to Bo.\n2 Who has the milk?\tBo\t1\n"
    "3 Bo gave the milk to Cy.\n4 Who has the milk?\tCy\t3\n"
)


def movements(stories: int, seed: int) -> str:
    """A file in the format of bAbI's first task: two facts, a question, two facts, a question …"""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(stories):
        last_move: dict[str, tuple[str, int]] = {}
        for line in range(1, 10):
            if line % 3:
                person = str(rng.choice(PEOPLE))
                location = str(rng.choice(LOCATIONS, p=[0.4, 0.2, 0.2, 0.2]))
                last_move[person] = location, line
                rows.append(f"{line} {person} {rng.choice(MOVES)} to the {location}.")
            else:
                person = str(rng.choice(sorted(last_move)))
                location, fact = last_move[person]
                rows.append(f"{line} Where is {person}? \t{location}\t{fact}")
    return "\n".join(rows) + "\n"


def expected_questions(text: str) -> list[tuple[list[str], str, str, int]]:
    """Facts, question, answer and story of every question of a file."""
    questions = []
    facts: list[str] = []
    story = -1
    for row in text.splitlines():
        line_number, line = row.split(" ", 1)
        if int(line_number) == 1:
            facts, story = [], story + 1
        if "\t" in line:
            question, answer, _ = line.split("\t")
            questions.append((list(facts), question.strip(), answer, story))
        else:
            facts.append(line)
    return questions
