"""Labels: what can be the name of a class, and what is only a misspelt one."""

import pytest

from app.errors import InvalidRequestError
from app.feedback.label import MAX_LENGTH, check, check_spelling


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("cat", "cat"),
        ("  red panda ", "red panda"),
        ("cafe\u0301", "caf\u00e9"),
        ("猫", "猫"),
        ("v1.2_b-c (new)", "v1.2_b-c (new)"),
        ("x" * MAX_LENGTH, "x" * MAX_LENGTH),
    ],
)
def test_names_of_classes(given: str, kept: str) -> None:
    assert check(given) == kept


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "is empty"),
        (" \t\n", "is empty"),
        ("x" * (MAX_LENGTH + 1), "has 256 characters"),
        ("../cat", "slash"),
        ("/etc/passwd", "slash"),
        ("a/b", "slash"),
        ("a\\b", "slash"),
        ("..", "dot"),
        (".hidden", "dot"),
        ("__MACOSX", "system's own"),
        ("two\nlines", "control character"),
        ("nul\x00", "control character"),
        ("bell\x07", "control character"),
        ("line\u2028end", "control character"),
        ("broken\ud800", "broken letter"),
    ],
)
def test_names_that_no_folder_of_a_class_can_have(label: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(label)


def test_a_label_that_is_nearly_another_one_is_refused() -> None:
    known = ["cat", "Red Panda"]
    for label in ("cat", "Red Panda", "dog", "cats"):
        check_spelling(label, known)
    for label in ("Cat", "CAT", "c at", "red panda", "RedPanda"):
        with pytest.raises(InvalidRequestError, match=r"differs only in case or spaces from '(cat|Red Panda)'"):
            check_spelling(label, known)
    check_spelling("Cat", ["cat", "Cat"])  # whoever has both means them
