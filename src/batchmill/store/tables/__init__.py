"""The tables: every row of Batchmill."""

from batchmill.store.tables.operated import backend, lane, model, roster, transaction_name, worker
from batchmill.store.tables.owned import (
    api_key,
    batch,
    batch_share,
    batch_usage,
    blob,
    delivery,
    error_group,
    file,
    organisation,
    rate,
    replay,
    segment,
    slice_,
    usage_day,
    webhook,
)
from batchmill.store.tables.schema import metadata

__all__ = [
    "api_key",
    "backend",
    "batch",
    "batch_share",
    "batch_usage",
    "blob",
    "delivery",
    "error_group",
    "file",
    "lane",
    "metadata",
    "model",
    "organisation",
    "rate",
    "replay",
    "roster",
    "segment",
    "slice_",
    "transaction_name",
    "usage_day",
    "webhook",
    "worker",
]
