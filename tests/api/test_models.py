"""Models over the API: what is configured of them, and their aliases."""

import json
from collections.abc import Callable

from api.served import Served
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.store.model import add_models

_BIG = ModelFacts(
    name="org/big", aliases=("big",), owned_by="us", extras={"context_length": 4096, "supports_image_in": True}
)


def test_aliases_are_listed_with_what_is_configured_of_their_target(serve: Callable[..., Served]) -> None:
    """A served model has an object under each of its names; an alias of a model that nobody serves has none."""
    served = serve(catalogue=Catalogue([_BIG, ModelFacts(name="away", aliases=("far",))]))
    tenant = served.tenant()
    served.rows(lambda tx: add_models(tx, names=["org/big", "plain"], now=7))
    shared = {"object": "model", "created": 7, "owned_by": "us", "context_length": 4096, "supports_image_in": True}
    expected = [
        {"id": "org/big", **shared},
        {"id": "big", **shared},
        {"id": "plain", "object": "model", "created": 7, "owned_by": "batchmill"},
    ]
    assert json.loads(tenant.call("GET", "/v1/models").body) == {"object": "list", "data": expected}
    assert json.loads(tenant.call("GET", "/v1/models/big").body) == expected[1]
    assert tenant.call("GET", "/v1/models/far").status == 404
