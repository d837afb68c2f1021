"""What a person looks at."""

from pathlib import Path

from PIL import Image

from training.report import write_confusion


def test_class_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    write_confusion([[3, 1], [0, 4]], ["a $5_to_$10", "$_$"], path)
    with Image.open(path) as picture:
        picture.verify()
