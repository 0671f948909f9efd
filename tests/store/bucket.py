"""A bucket on this machine: `python tests/store/bucket.py PORT` serves an emulator of Google Cloud Storage.

The emulator ignores ifGenerationMatch, on which locks rest; here it is obeyed, as the store's documentation has it:
0 for "no such object", else the generation that the object must have; 412 where that is not so. It does not say either
which generation it sends, without which tensorstore cannot write on a condition: the header is added.
"""

import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

ONE = threading.RLock()


def generation(storage: Any, bucket: str, name: str) -> str:
    """The generation of an object, "0" where there is none."""
    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"


def conditional(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that does nothing where the request's condition does not hold."""

    def handle(request: Any, response: Any, storage: Any, *arguments: Any, **options: Any) -> Any:
        wanted = request.query.get("ifGenerationMatch")
        with ONE:
            if wanted:
                name = (
                    request.params.get("object_id") or (request.query.get("name") or [request.data["meta"]["name"]])[0]
                )
                if generation(storage, request.params["bucket_name"], name) != wanted[0]:
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    return None
            return handler(request, response, storage, *arguments, **options)

    return handle


def with_generation(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose answer names the generation of the object that it holds."""

    def handle(request: Any, response: Any, storage: Any, *arguments: Any, **options: Any) -> Any:
        with ONE:
            current = generation(storage, request.params["bucket_name"], request.params["object_id"])
            if current != "0":
                response["x-goog-generation"] = current
            return handler(request, response, storage, *arguments, **options)

    return handle


if __name__ == "__main__":
    for name in ("get", "download"):
        setattr(objects, name, with_generation(getattr(objects, name)))
    for name in ("insert", "delete", "patch"):
        setattr(objects, name, conditional(getattr(objects, name)))
    from gcp_storage_emulator.server import create_server  # reads the handlers when it is imported

    create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
