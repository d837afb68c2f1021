"""What a person needs of the service, in a browser: the page at `/`, the API at `/docs`. No build step."""

import os
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parents[1] / "web"
_CURRENT = {"Cache-Control": "no-cache"}
# The pages run nothing but their own files, talk to nobody but this service, and are shown in nobody's frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    **_CURRENT,
}


class _CurrentFiles(StaticFiles):
    """Files that a browser asks after each time, as those of another version do not fit the page."""

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_CURRENT)
        return response


files = _CurrentFiles(directory=_FOLDER)


@router.get("/")
async def page() -> FileResponse:
    """Show the page."""
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


@router.get("/docs")
async def docs() -> FileResponse:
    """Show what the service can be asked, from /openapi.json, with a form to try it."""
    return FileResponse(_FOLDER / "docs.html", headers=_HEADERS)
