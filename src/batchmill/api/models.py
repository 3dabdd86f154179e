"""The routes of models: every one ever seen that the organisation may use, and what is configured of it."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer
from batchmill.spec import errors
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import model_list, model_object
from batchmill.store.database import Database
from batchmill.store.model import list_models


def model_routes(*, database: Database, catalogue: Catalogue = NOTHING_CONFIGURED) -> APIRouter:
    """Return the two routes of contract a.10."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    async def permitted(request: Request) -> list[tuple[str, int]]:
        found = await database.read(list_models)
        return [(name, created) for name, created in found if request.state.allowance.permits(name)]

    @router.get("", summary="List models")
    async def list_(request: Request) -> Response:
        """List the models that you may use."""
        return json_answer(model_list(list(_objects(await permitted(request), catalogue).values())))

    @router.get("/{name:path}", summary="Retrieve a model")  # a model's name may hold slashes
    async def retrieve(request: Request, name: str) -> Response:
        """Return one model."""
        models = _objects(await permitted(request), catalogue)
        if name not in models:
            raise errors.not_found("model")
        return json_answer(models[name])

    return router


def _objects(models: Sequence[tuple[str, int]], catalogue: Catalogue) -> dict[str, dict[str, object]]:
    """Return the object of every name of these models; an alias's is its target's, under its own id."""
    created = dict(models)
    return {
        name: model_object(name, created[facts.name], facts.owned_by, facts.extras)
        for name, facts in catalogue.names(created)
    }
