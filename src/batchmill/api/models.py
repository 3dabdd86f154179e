"""The routes of models: every one configured or ever seen at a backend that the organisation may use."""

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer
from batchmill.spec import errors
from batchmill.spec.objects import model_list, model_object
from batchmill.store.database import Database
from batchmill.store.model import list_models


def model_routes(*, database: Database) -> APIRouter:
    """Return the two routes of contract a.10."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    async def permitted(request: Request) -> list[tuple[str, int]]:
        found = await database.read(list_models)
        return [(name, created) for name, created in found if request.state.allowance.permits(name)]

    @router.get("", summary="List models")
    async def list_(request: Request) -> Response:
        """List the models that you may use."""
        return json_answer(model_list([model_object(name, created) for name, created in await permitted(request)]))

    @router.get("/{name:path}", summary="Retrieve a model")  # a model's name may hold slashes
    async def retrieve(request: Request, name: str) -> Response:
        """Return one model."""
        models = dict(await permitted(request))
        if name not in models:
            raise errors.not_found("model")
        return json_answer(model_object(name, models[name]))

    return router
