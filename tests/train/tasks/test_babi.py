"""bAbI's files: questions with the facts before them, and errors that name the row."""

from pathlib import Path

import pytest

from tests.train.tasks.babi import FEW_QUESTIONS, expected_questions, movements
from zoo.errors import UserError
from zoo.train.tasks.babilong import Babilong, read_babi


@pytest.mark.parametrize("text", [movements(30, seed=1), FEW_QUESTIONS * 3], ids=["qa1", "qa5"])
def test_a_question_has_the_facts_of_its_story_so_far(text: str, tmp_path: Path) -> None:
    (tmp_path / "qa1_test.txt").write_text(text)
    assert expected_questions(text) == [
        ([fact.decode() for fact in facts], question.decode(), answer.decode(), story)
        for facts, question, answer, story, _ in read_babi(tmp_path / "qa1_test.txt")
    ]


def test_lines_of_supporting_facts_are_counted_with_the_questions_between_them(tmp_path: Path) -> None:
    (tmp_path / "qa3_test.txt").write_text(
        "1 Ada left.\n2 Who left?\tAda\t1\n3 Bo sat.\n4 Cy ran.\n5 Who ran?\tCy\t4 1\n6 Why?\tno\n"
        "1 Cy sat.\n2 Who sat?\tCy\t1\n"
    )
    supporting = [question.supporting for question in read_babi(tmp_path / "qa3_test.txt")]
    assert supporting == [(0,), (2, 0), (), (0,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stories with questions, found none"),
        ("1 Ada left.\n", "stories with questions, found none"),
        ("2 Ada left.\n", "row 1: expected a number from 1"),
        ("1 Ada left.\nBo sat.\n", "row 2: expected a number"),
        ("1 Ada left.\n2 Who left?\t\t1\n", "row 2: .*its answer"),
        ("1 \n", "row 1"),
    ],
)
def test_malformed_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "qa1_test.txt").write_text(text)
    with pytest.raises(UserError, match=rf"qa1_test\.txt.*{message}"):
        read_babi(tmp_path / "qa1_test.txt")


def test_a_single_story_is_too_few(tmp_path: Path) -> None:
    (tmp_path / "qa7_train.txt").write_text(FEW_QUESTIONS)
    (tmp_path / "qa7_test.txt").write_text(FEW_QUESTIONS)
    (tmp_path / "corpus.txt").write_text("A sentence of background. " * 20)
    task = Babilong(["qa7"], folder=tmp_path, corpus=str(tmp_path / "corpus.txt"))
    with pytest.raises(UserError, match=r"qa7_train\.txt: expected at least 2 stories, found 1"):
        task.split("train")
