"""The entrance for predictions, past the framework, whose router and layers cost more than all else that is done."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.connection import send_whole
from app.errors import respond
from app.middleware import Check, Limit, announced
from app.service import Service
from app.serving.admission import Ticket
from app.telemetry import Prediction

_PATH = "/predict"
_TICKET = "refit.ticket"


class Entrance:
    """Lets a request for a prediction in, or refuses it before anything else is done for it.

    Refusing is what an overloaded service does most often, and what that costs is taken from those that were let in:
    most requests do not come so far, see `app.refusal`. What is refused is counted, too.

    Args:
        endpoint: makes the answer.
        limit: on the body.
        checks: each raises an error where a request may not pass.
    """

    def __init__(
        self, endpoint: Callable[[Request], Awaitable[Response]], limit: Limit, checks: Sequence[Check]
    ) -> None:
        self._endpoint = endpoint
        self._limit = limit
        self._checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with Prediction(scope) as prediction:
            answer = await self._answer(scope, receive)
            prediction.answered(answer)
            prediction.status = await send_whole(answer, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        service: Service = scope["app"].state.service
        try:
            for check in self._checks:
                check(scope)
            with service.admission.enter(announced(scope)) as ticket:
                scope[_TICKET] = ticket
                return await self._endpoint(Request(scope, self._limit.counted(scope, receive)))
        except Exception as error:  # one that nobody foresaw is logged there
            return respond(error)


def is_prediction(scope: Scope) -> bool:
    """Whether a request asks for a prediction."""
    return bool(scope["type"] == "http" and scope["path"] == _PATH and scope["method"] == "POST")


def ticket_of(scope: Scope) -> Ticket:
    """What a request for a prediction holds."""
    found: Ticket = scope[_TICKET]
    return found
