"""What a person needs of the service, in a browser: the page at `/`, the API at `/docs`. No build step."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parents[1] / "web"
# The page runs nothing but its own files, talks to nobody but this service, and is shown in nobody's frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
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
