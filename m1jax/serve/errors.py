"""What a client is told when a request is refused, in OpenAI's form."""

from typing import Any

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 504: "timeout_error",
}  # fmt: skip


class RequestError(Exception):
    """A request that is refused: an HTTP status, one sentence, and the parameter that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 0
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        found = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found
