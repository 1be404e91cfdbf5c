"""Errors of the endpoint, in the shape that OpenAI's clients read."""

from typing import Any

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
"""Types of errors by status; those of other requests that are refused are invalid."""


class ApiError(Exception):
    """A request that is refused or has failed.

    Args:
        message: one sentence or more: what was wrong and what to do.
        status: of HTTP.
        param: the field of the request that is wrong; None for no single one.
        code: for programs; None for none.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status = message, status
        self.param, self.code = param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object of the response.

        >>> ApiError("There is no such model.", 404, param="model").body()["error"]
        {'message': 'There is no such model.', 'type': 'invalid_request_error', \
'param': 'model', 'code': None}
        """
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, server),
                "param": self.param,
                "code": self.code,
            }
        }
