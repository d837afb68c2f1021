"""Screens an archive that came over the network: what can be said against it before a run is begun."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from training import preflight, source
from training.errors import ImageError, InputError
from training.picture import decode, open_picture
from training.preflight import Findings
from training.source import Member

# Deflate makes at most 1,032 times smaller; pictures hardly at all. Below the floor, a ratio says nothing.
MAX_EXPANSION = 100
EXPANSION_FLOOR = 100_000_000
# Archives that hold fewer bytes have all their pictures decoded at once; larger ones when the run reads them.
DECODED_AT_ONCE = 20_000_000
# Pixels that are decoded at once, whatever they take as bytes: a few seconds. Photos of 20 MB have fewer.
PIXELS_AT_ONCE = 200_000_000
_NAMED = 10


def screen(
    path: Path, filename: str, max_files: int, max_pixels: int, least_classes: int, stopped: Callable[[], bool]
) -> Findings | None:
    """List every problem of an archive that is cheap to find; nothing is unpacked.

    Args:
        filename: as the archive was called by who sent it, for the messages.
        max_files: most files that it may hold.
        max_pixels: most pixels of a picture, width times height.
        least_classes: how many classes it has to have.
        stopped: asked before each file whether nobody wants to know any more.

    Returns:
        What was found; None if it was stopped.
    """
    try:
        members, refused = _list(path, max_files, stopped)
        if refused:
            return Findings(errors=refused)
        folders = [member.path for member in members if member.kind == "folder"]
        files = [member for member in members if member.kind == "file" and not source.is_litter(member.path)]
        if any(source.is_batch(member.path) for member in files):
            return Findings()  # CIFAR-10's own files, whose pictures the run reads
        small = sum(member.size for member in files) <= DECODED_AT_ONCE
        damaged = _damaged(path, max_pixels, stopped) if small else {}
    except InputError as error:
        return Findings(errors=[problem.replace(path.name, filename) for problem in error.problems])
    if stopped():
        return None
    # A tar that was added to may hold a file more than once; the last one counts.
    pictures = dict.fromkeys(member.path for member in files if preflight.is_picture_name(member.path))
    return preflight.inspect(
        [picture for picture in pictures if picture not in damaged],
        [folder for folder in folders if not source.is_litter(folder)],
        damaged,
        [member.path for member in files if not preflight.is_picture_name(member.path)],
        least_classes,
    )


def _list(path: Path, max_files: int, stopped: Callable[[], bool]) -> tuple[list[Member], list[str]]:
    """What an archive says that it holds, and what is refused for that alone."""
    room = max(EXPANSION_FLOOR, MAX_EXPANSION * path.stat().st_size)
    members: list[Member] = []
    refused: list[str] = []
    total = 0
    for member in source.members(path, max_files):
        if stopped():
            break
        members.append(member)
        total += member.size
        if total > room:
            return members, [
                f"The archive unpacks to more than {room:,} bytes, over {MAX_EXPANSION} times its size. Pack JPEG or "
                "PNG pictures."
            ]
        if len(refused) < _NAMED and (problem := _problem(member)):
            refused.append(problem)
    return members, refused


def _problem(member: Member) -> str | None:
    if member.kind in {"link", "device"}:
        return f"{member.name!r} is a {member.kind}. Pack the files themselves."
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"{member.name!r} points outside the archive. Pack it with relative paths."
    if member.size > source.MAX_FILE_BYTES and preflight.is_picture_name(member.path):
        return f"{member.name!r} holds {member.size:,} bytes; at most {source.MAX_FILE_BYTES:,} are read."
    return None


def _damaged(path: Path, max_pixels: int, stopped: Callable[[], bool]) -> dict[PurePosixPath, str]:
    """The pictures that cannot be decoded, with the reason, among the first of `PIXELS_AT_ONCE` pixels together."""
    damaged: dict[PurePosixPath, str] = {}
    left = PIXELS_AT_ONCE
    for entry in source.read(path):
        if stopped():
            break
        if entry.data is None or not preflight.is_picture_name(entry.path):
            continue
        damaged.pop(entry.path, None)
        try:
            opened = open_picture(entry.data, max_pixels)
            left -= opened.width * opened.height
            if left < 0:
                break
            decode(entry.data, 8, max_pixels)
        except ImageError as error:
            damaged[entry.path] = str(error)
    return damaged
