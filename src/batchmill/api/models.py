"""The routes of models: every one configured or ever seen at a backend."""

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer
from batchmill.spec import errors
from batchmill.spec.objects import model_list, model_object
from batchmill.store.database import Database
from batchmill.store.model import list_models


def model_routes(*, database: Database) -> APIRouter:
    """Return the two routes of contract a.10."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    async def list_(_request: Request) -> Response:
        """List the models."""
        models = await database.read(list_models)
        return json_answer(model_list([model_object(name, created) for name, created in models]))

    @router.get("/{name:path}")  # a model's name may hold slashes
    async def retrieve(_request: Request, name: str) -> Response:
        """Return one model."""
        models = dict(await database.read(list_models))
        if name not in models:
            raise errors.not_found("model")
        return json_answer(model_object(name, models[name]))

    return router
