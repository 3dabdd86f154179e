"""The OpenAPI 3.1 document of what is served, with this server's own limits."""

from batchmill.api.document.account import account_paths, account_schemas
from batchmill.api.document.contract import contract_paths
from batchmill.api.document.operation import FAULTS, fault_answer
from batchmill.api.document.progress import progress_paths, progress_schemas
from batchmill.api.document.quote import quote_paths, quote_schemas
from batchmill.api.document.results import result_paths
from batchmill.api.document.schemas import Json, schemas
from batchmill.api.document.steer import steer_paths
from batchmill.api.document.webhooks import webhook_paths, webhook_schemas
from batchmill.spec.limits import Limits


def openapi(*, version: str, limits: Limits) -> Json:
    """Return the document as data."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Batchmill", "version": version},
        "paths": {
            **contract_paths(limits),
            **progress_paths(),
            **steer_paths(limits),
            **result_paths(limits),
            **account_paths(limits),
            **webhook_paths(limits),
            **quote_paths(limits),
        },
        "components": {
            "schemas": {
                **schemas(limits),
                **progress_schemas(),
                **account_schemas(),
                **webhook_schemas(),
                **quote_schemas(limits),
            },
            "responses": {str(status): fault_answer(status) for status in FAULTS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
