"""What a source's folders mean, and all that can be wrong with them."""

from collections.abc import Iterable
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.preflight import Findings, Place, inspect, is_picture_name, natural


def look(
    pictures: str | Iterable[str], folders: str = "", damaged: str = "", others: str = "", each: int = 3
) -> Findings:
    """Inspect pictures named as `cat dog`, `each` of them in every such folder, or listed one by one."""
    if isinstance(pictures, str):
        pictures = [f"{folder}/{number}.png" for folder in pictures.split() for number in range(each)]
    paths = list(map(PurePosixPath, pictures))
    return inspect(
        paths,
        list(map(PurePosixPath, folders.split())),
        dict.fromkeys(map(PurePosixPath, damaged.split()), "The picture is damaged."),
        list(map(PurePosixPath, others.split())),
    )


def placed(findings: Findings) -> dict[str, str]:
    """`split label` of every picture."""
    return {str(path): f"{place.split} {place.label}" for path, place in findings.places.items()}


def counted(findings: Findings) -> dict[str, set[str]]:
    """The classes of every split."""
    splits: dict[str, set[str]] = {}
    for place in findings.places.values():
        splits.setdefault(place.split, set()).add(place.label)
    return splits


BOTH = {"cat", "dog"}


def test_class_folders() -> None:
    findings = look("dog cat", each=20)
    assert findings.classes == ("cat", "dog")
    assert findings.errors == findings.warnings == []
    assert len(findings.places) == 40
    assert findings.places[PurePosixPath("dog/7.png")] == Place("train", "dog")


@pytest.mark.parametrize(
    ("pictures", "splits"),
    [
        ("train/cat train/dog test/cat test/dog", {"train", "test"}),
        ("train/cat train/dog val/cat val/dog", {"train", "validation"}),
        ("train/cat train/dog valid/cat valid/dog test/cat test/dog", {"train", "validation", "test"}),
        (
            "training/cat training/dog validation/cat validation/dog testing/cat testing/dog",
            {"train", "validation", "test"},
        ),
        ("Train/cat Train/dog TEST/cat TEST/dog Val/cat Val/dog", {"train", "validation", "test"}),
        ("train/cat train/dog", {"train"}),
    ],
)
@pytest.mark.parametrize("wrapping", ["", "pets/", "my/old/pets/"])
def test_splits_and_wrapping_folders(pictures: str, splits: set[str], wrapping: str) -> None:
    findings = look(" ".join(wrapping + folder for folder in pictures.split()))
    assert findings.errors == []
    assert counted(findings) == dict.fromkeys(splits, BOTH)
    assert findings.classes == ("cat", "dog")


@pytest.mark.parametrize("wrapping", ["pets", "a/b"])
def test_wrapping_around_classes(wrapping: str) -> None:
    assert counted(look(f"{wrapping}/cat {wrapping}/dog")) == {"train": BOTH}


def test_wrapping_folder_with_a_picture_of_its_own() -> None:
    findings = look(["pets/preview.png", *(f"pets/{name}/{number}.png" for name in BOTH for number in range(3))])
    assert counted(findings) == {"train": BOTH}
    assert "1 pictures lie in no class folder and are left out: pets/preview.png" in findings.warnings


def test_a_folder_called_train_beside_other_classes_is_a_class() -> None:
    assert look("train plane ship").classes == ("plane", "ship", "train")
    assert look("train/steam train/electric plane/jet ship/sail").classes == ("plane", "ship", "train")


def test_a_folder_beside_the_splits_is_left_out() -> None:
    findings = look("train/cat train/dog test/cat test/dog unsorted/cat")
    assert findings.errors == []
    assert counted(findings) == {"train": BOTH, "test": BOTH}
    assert "3 pictures lie in no class folder and are left out: unsorted/cat/0.png" in findings.warnings[0]


def test_only_held_out_splits() -> None:
    assert look("test/cat test/dog val/cat val/dog").errors[0] == (
        "There is no class at all to train on. A classifier needs pictures of two classes or more."
    )


def test_deeper_folders_belong_to_their_class() -> None:
    assert counted(look("cat/persian cat/siamese dog dog/pug")) == {"train": BOTH}
    assert counted(look("train/cat/persian train/cat/siamese train/dog test/cat test/dog/pug")) == {
        "train": BOTH,
        "test": BOTH,
    }


def test_pictures_outside_of_class_folders_are_named() -> None:
    findings = look(
        [
            "loose.png",
            "train/loose.png",
            *(f"train/{name}/{n}.png" for name in BOTH for n in range(3)),
            *(f"test/{name}/1.png" for name in BOTH),
        ]
    )
    assert findings.errors == []
    assert findings.warnings[0] == "2 pictures lie in no class folder and are left out: loose.png, train/loose.png"
    assert "loose.png" not in placed(findings)


def test_pictures_without_any_class_folder() -> None:
    findings = look(["1.png", "2.png"])
    assert findings.errors == [
        "There is no class at all to train on, and 2 pictures in no class folder such as 1.png. A classifier needs "
        "pictures of two classes or more: put those of each class into a folder of its own, like cat/1.jpg."
    ]
    assert findings.places == {}


def test_one_class_and_pictures_outside_of_it() -> None:
    assert look(["loose.png", *(f"cat/{number}.png" for number in range(3))]).errors == [
        "There is only one class, 'cat', and 1 picture in no class folder such as loose.png. A classifier needs "
        "pictures of two classes or more: put those of each class into a folder of its own, like cat/1.jpg."
    ]


@pytest.mark.parametrize("pictures", ["cat", "pets/cat", "train/cat", "pets/train/cat", "train/cat test/cat"])
def test_one_class(pictures: str) -> None:
    assert look(pictures).errors == [
        "There is only one class, 'cat'. A classifier needs pictures of two classes or more."
    ]


def test_a_single_picture() -> None:
    assert look(["cat/1.jpg"]).errors == [
        "There is only one class, 'cat'. A classifier needs pictures of two classes or more.",
        "Class 'cat' has 1 picture; it needs 3 or more.",
    ]


def test_no_pictures() -> None:
    wanted = "Put JPEG, PNG, WebP, GIF or BMP files into one folder for each class, like cat/1.jpg."
    assert look([]).errors == [f"There are no pictures. {wanted}"]
    assert look([], others="notes").errors == [
        f"There are no pictures, only 1 file (no ending) such as notes. {wanted}"
    ]
    findings = look([], folders="cat dog", others="cat/1.heic notes.txt")
    assert findings.errors == [
        "There are no pictures, only 2 files (.heic, .txt) such as cat/1.heic. HEIC cannot be read: export such "
        f"pictures as JPEG or PNG. {wanted}"
    ]
    assert findings.warnings == ["2 files are no pictures and are left out: cat/1.heic, notes.txt"]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("pictures", "folder"),
    [
        ("cat dog", "fish"),
        ("cat dog", "fish/new"),
        ("pets/cat pets/dog", "pets/fish"),
        ("a/b/cat a/b/dog", "a/b/fish"),
        ("pets/cat/persian pets/cat/siamese pets/dog", "pets/fish"),
        ("train/cat train/dog test/cat test/dog", "train/fish"),
        ("train/cat train/dog test/cat test/dog", "test/fish"),
        ("train/cat train/dog test/cat test/dog test/fish", "train/fish"),
        ("pets/train/cat pets/train/dog pets/val/cat pets/val/dog", "pets/train/fish"),
    ],
)
def test_class_of_pictures_in_a_format_that_is_not_read(pictures: str, folder: str, listed: bool) -> None:
    named = f"{pictures} {folder}" if listed else ""
    findings = look(pictures, named, others=f"{folder}/IMG_1.HEIC {folder}/IMG_2.heic {folder}/IMG_2.mov")
    assert findings.errors[0] == (
        f"The folder of class 'fish' holds no pictures, only 3 files (.heic, .mov) such as {folder}/IMG_1.HEIC. "
        "HEIC cannot be read: export such pictures as JPEG or PNG. If it is no class, remove it."
    )
    assert "fish" not in findings.classes


def test_one_class_in_folders_and_the_other_in_a_format_that_is_not_read() -> None:
    findings = look("pets/cat/persian pets/cat/siamese", others="pets/dog/1.heic")
    assert findings.classes == ("cat",)
    assert findings.errors[0].startswith("The folder of class 'dog' holds no pictures, only 1 file (.heic)")


@pytest.mark.parametrize("folders", ["", "cat dog notes"])
def test_folder_of_other_files_beside_classes(folders: str) -> None:
    assert look("cat dog", folders, others="notes/1.txt notes/old/2.csv").errors == [
        "The folder of class 'notes' holds no pictures, only 2 files (.csv, .txt) such as notes/1.txt. Put JPEG or PNG "
        "pictures into it. If it is no class, remove it."
    ]


@pytest.mark.parametrize(
    ("pictures", "others"),
    [
        ("cat dog", "notes.txt cat/notes.txt dog/old/1.heic"),
        ("pets/cat pets/dog", "docs/notes.txt docs/old/notes.txt pets/notes.txt"),
        ("train/cat train/dog test/cat test/dog", "notes/1.heic notes/old/2.txt train/notes.txt"),
        ("train/cat train/dog test/cat", "test/dog/notes.txt"),
    ],
)
def test_other_files_that_are_no_class(pictures: str, others: str) -> None:
    findings = look(pictures, others=others)
    assert findings.errors == []
    assert findings.classes == ("cat", "dog")


def test_split_without_a_picture_that_can_be_read_of_a_class() -> None:
    findings = look("train/cat train/dog test/cat", others="test/dog/1.heic")
    assert findings.errors == [
        "The folder of class 'dog' holds no pictures, only 1 file (.heic) such as test/dog/1.heic. HEIC cannot be "
        "read: export such pictures as JPEG or PNG. If it is no class, remove it."
    ]


def test_class_with_few_pictures_that_can_be_read() -> None:
    findings = look([*(f"cat/{number}.png" for number in range(3)), "dog/1.png"], others="dog/2.tif dog/3.avif")
    assert findings.errors == [
        "Class 'dog' has 1 picture; it needs 3 or more. Left out: 2 files (.avif, .tif) such as dog/2.tif. AVIF and "
        "TIF cannot be read: export such pictures as JPEG or PNG."
    ]


EMPTY = "Class 'fish' is empty. Put pictures into it, or remove it."


@pytest.mark.parametrize(
    ("pictures", "folders"),
    [
        ("cat dog", "cat dog fish"),
        ("pets/cat pets/dog", "pets pets/cat pets/dog pets/fish"),
        ("a/b/cat a/b/dog", "a a/b a/b/fish"),
        ("train/cat train/dog test/cat test/dog", "train test train/fish"),
        ("train/cat train/dog test/cat test/dog", "train test test/fish"),
        ("train/cat train/dog test/cat test/dog", "train/fish test/fish"),
        ("train/cat train/dog", "train train/cat train/fish"),
        ("train/cat train/dog", "train test train/fish"),
        ("train/cat train/dog", "train test test/fish"),
        ("pets/train/cat pets/train/dog", "pets pets/train pets/test pets/train/fish"),
        ("pets/Train/cat pets/Train/dog pets/Val/cat pets/Val/dog", "pets/Train/fish pets/Val"),
        ("train/cat train/dog val/cat val/dog", "train/fish"),
        ("cat/persian cat/siamese dog/pug", "cat cat/persian dog fish"),
    ],
)
def test_empty_class(pictures: str, folders: str) -> None:
    findings = look(pictures, folders)
    assert findings.errors == [EMPTY]
    assert findings.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("pictures", "folders"),
    [
        ("cat dog", "cat dog"),
        ("cat dog", "cat/empty"),
        ("pets/cat pets/dog", "pets pets/cat pets/dog pets/cat/old"),
        ("train/cat train/dog", "train test val"),
        ("train/cat train/dog test/cat", "train test test/dog"),
        ("train/cat train/dog test/cat test/dog", "train test notes notes/old"),
        ("train/cat train/dog test/cat test/dog", "wrapped train/cat/old"),
    ],
)
def test_folders_that_are_no_empty_class(pictures: str, folders: str) -> None:
    assert look(pictures, folders).errors == []


def test_class_that_a_held_out_split_lacks() -> None:
    assert "The test split has no pictures of ['dog']." in look("train/cat train/dog test/cat").warnings


def test_class_that_only_a_held_out_split_has() -> None:
    assert look("train/cat train/dog test/cat test/fish val/bird").errors == [
        "Class 'fish' is in the test split but not in train.",
        "Class 'bird' is in the validation split but not in train.",
    ]


@pytest.mark.parametrize(
    ("pictures", "least"),
    [
        ("cat dog", 3),
        ("{}cat {}dog test/cat test/dog", 2),
        ("{}cat {}dog val/cat val/dog", 2),
        ("{}cat {}dog test/cat test/dog val/cat val/dog", 1),
    ],
)
def test_fewest_pictures_leave_one_for_each_split_that_has_to_be_made(pictures: str, least: int) -> None:
    pictures = pictures.format("train/", "train/")
    assert look(pictures, each=least).errors == []
    if least > 1:
        noun = "picture" if least == 2 else "pictures"
        assert look(pictures, each=least - 1).errors == [
            f"Class {name!r} has {least - 1} {noun}; it needs {least} or more." for name in ("cat", "dog")
        ]


def test_small_class_is_pointed_out() -> None:
    findings = look([*(f"cat/{n}.png" for n in range(19)), *(f"dog/{n}.png" for n in range(20))])
    assert findings.warnings == ["Class 'cat' has only 19 pictures; 20 or more work better."]


def test_damaged_picture_is_named_and_its_class_is_not_called_empty() -> None:
    findings = look("cat", folders="cat dog", damaged="dog/0.png dog/1.png dog/2.png")
    assert findings.errors == [f"dog/{number}.png: The picture is damaged." for number in range(3)]
    assert set(counted(findings)) == {"train"}
    assert all(place.label == "cat" for place in findings.places.values())


def test_only_damaged_pictures() -> None:
    assert len(look([], damaged="cat/1.png cat/2.png cat/3.png dog/1.png dog/2.png dog/3.png").errors) == 6


def test_many_damaged_pictures_are_counted() -> None:
    findings = look("cat dog", damaged=" ".join(f"cat/bad{number}.png" for number in range(25)))
    assert len(findings.errors) == 11
    assert findings.errors[-1] == "... and 15 more pictures that cannot be read."


def test_every_problem_is_listed_at_once() -> None:
    findings = look(
        ["train/cat/1.png", *(f"test/{name}/1.png" for name in ("cat", "bird"))],
        folders="train/fish",
        damaged="train/cat/2.png",
        others="train/cat/3.heic",
    )
    assert findings.errors == [
        "train/cat/2.png: The picture is damaged.",
        "Class 'fish' is empty. Put pictures into it, or remove it.",
        "There is only one class, 'cat'. A classifier needs pictures of two classes or more.",
        "Class 'bird' is in the test split but not in train.",
    ]
    assert findings.warnings[0] == "1 files are no pictures and are left out: train/cat/3.heic"


def test_class_names_with_spaces_and_other_scripts() -> None:
    names = ["Bernese mountain dog", "chien (été)", "猫", "собака", "🐈‍⬛"]
    findings = look([f"{name}/{number}.png" for name in names for number in range(3)])
    assert findings.errors == []
    assert set(findings.classes) == set(names)


def test_one_name_in_two_ways_of_storing_accents_is_one_class() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    findings = look(
        [
            *(f"train/{composed}/{n}.png" for n in range(3)),
            *(f"train/tea/{n}.png" for n in range(3)),
            f"test/{apart}/1.png",
            "test/tea/1.png",
        ]
    )
    assert findings.errors == []
    assert findings.classes == ("caf\u00e9", "tea")


def test_class_names_that_differ_only_in_case_or_spaces() -> None:
    findings = look([f"{name}/{number}.png" for name in ("Cat", "cat", "dog", "dog ") for number in range(3)])
    assert findings.errors == [
        "The class names ['Cat', 'cat'] differ only in case or spaces. Merge them or rename one.",
        "The class names ['dog', 'dog '] differ only in case or spaces. Merge them or rename one.",
    ]


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "bad\udcff"])
def test_class_names_that_cannot_be_shown(name: str) -> None:
    findings = look([f"{folder}/{number}.png" for folder in (name, "cat") for number in range(3)])
    assert findings.errors == [f"Class {name!r} has control characters or broken letters in its name. Rename it."]
    assert findings.errors[0].isprintable()


def test_classes_are_in_natural_order() -> None:
    assert look("size10 size9 Size1 size100 ant").classes == ("ant", "Size1", "size9", "size10", "size100")


@pytest.mark.parametrize("name", ["1.jpg", "1.JPEG", "1.Png", "1.webp", "1.gif", "1.bmp", "a.b.jpg", "1.jfif"])
def test_picture_names(name: str) -> None:
    assert is_picture_name(PurePosixPath("cat", name))


@pytest.mark.parametrize("name", ["jpg", ".jpg", "1.jpg.txt", "1.heic", "1.svg", "1.tiff", "1"])
def test_names_of_other_files(name: str) -> None:
    assert not is_picture_name(PurePosixPath("cat", name))


@given(
    st.lists(
        st.text(st.characters(exclude_categories=[]), max_size=8)
        | st.from_regex(r"[a-c]{0,2}[0-9]{0,6}²?٣?", fullmatch=True),
        max_size=8,
    )
)
def test_natural_order_is_the_same_however_the_names_come(names: list[str]) -> None:
    ordered = sorted(names, key=natural)
    names.reverse()
    assert sorted(names, key=natural) == ordered


@given(st.text("abc", max_size=3), st.integers(0, 10**30), st.integers(0, 10**30), st.integers(0, 3))
def test_natural_order_follows_the_numbers(stem: str, one: int, other: int, zeros: int) -> None:
    names = [f"{stem}{'0' * zeros}{one}.png", f"{stem}{other}.png"]
    if one != other:
        assert (natural(names[0]) < natural(names[1])) == (one < other)
