"""What a person looks at."""

from pathlib import Path

from PIL import Image

from training.report import class_rows, write_confusion


def test_class_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    write_confusion([[3, 1], [0, 4]], ["a $5_to_$10", "$_$"], path)
    with Image.open(path) as picture:
        picture.verify()


def test_a_class_is_a_row_whatever_its_name_and_without_figures_if_it_has_no_pictures() -> None:
    figures = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}
    nothing = dict.fromkeys(figures, 0.0)
    assert class_rows({"cat|dog": figures | {"count": 1200}, "ship": nothing | {"count": 0}}).splitlines() == [
        r"| cat\|dog | 50.0% | 25.0% | 33.3% | 1,200 |",
        "| ship | - | - | - | 0 |",
    ]
