"""What a person needs of the service, in a browser: the page at `/`, the API at `/docs`. No build step."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parents[1] / "web"
# The pages run nothing but their own files, talk to nobody but this service, and are shown in nobody's frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
files = StaticFiles(directory=_FOLDER)


@router.get("/")
async def page() -> FileResponse:
    """Show the page."""
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


@router.get("/docs")
async def docs() -> FileResponse:
    """Show what the service can be asked, from /openapi.json, with a form to try it."""
    return FileResponse(_FOLDER / "docs.html", headers=_HEADERS)
