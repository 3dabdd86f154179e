"""The routes of webhooks in the OpenAPI document."""

from batchmill.api.document.operation import (
    REPLAY,
    as_json,
    idempotency_key,
    in_path,
    in_query,
    json_answer,
    operation,
    page,
)
from batchmill.api.document.schemas import COUNT, TEXT, TEXT_OR_NULL, TIME, TIME_OR_NULL, Json, id_, list_, object_
from batchmill.spec.limits import Limits
from batchmill.spec.webhooks import EVENTS, DeliveryStatus

_EVENT: Json = {"type": "string", "enum": [*EVENTS.values()]}
_EVENTS: Json = {"type": "array", "items": _EVENT, "minItems": 1}


def webhook_paths(limits: Limits) -> Json:
    """Return the paths of webhooks."""
    webhook, delivery, batch = in_path("webhook_id", "wh"), in_path("delivery_id", "whd"), in_path("batch_id", "batch")
    most = page(limits.batches_page, limits.max_batches_page)
    ordered = {
        "url": {"type": "string", "format": "uri", "maxLength": 2048},
        "events": {**_EVENTS, "type": ["array", "null"]},
    }
    body = as_json(object_(ordered, optional=("events",)))
    made = {200: json_answer("WebhookMade", REPLAY)}
    key = [idempotency_key(limits)]
    faults = (404, 408, 409, 507)
    return {
        "/v1/webhooks": {
            "post": operation(
                "Create a webhook",
                "It hears of the end of every batch of the organisation; its secret is shown in this answer alone.",
                made,
                faults=faults,
                parameters=key,
                body=body,
            ),
            "get": operation(
                "List webhooks",
                "Newest first.",
                {200: json_answer("WebhookList")},
                parameters=[in_query("limit", most), in_query("after", id_("wh"))],
            ),
        },
        "/v1/webhooks/{webhook_id}": {
            "parameters": [webhook],
            "delete": operation(
                "Delete a webhook", "With its log.", {200: json_answer("WebhookDeleted")}, faults=(404, 507)
            ),
        },
        "/v1/webhooks/{webhook_id}/deliveries": {
            "parameters": [webhook],
            "get": operation(
                "List deliveries",
                "What was sent, or is to be, newest first; kept for thirty days.",
                {200: json_answer("DeliveryList")},
                faults=(404,),
                parameters=[in_query("limit", most), in_query("after", id_("whd"))],
            ),
        },
        "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay": {
            "parameters": [webhook, delivery],
            "post": operation(
                "Replay a delivery",
                "The same event, under the id that it had.",
                {200: json_answer("Delivery")},
                faults=(404, 408, 507),
            ),
        },
        "/v1/batches/{batch_id}/webhooks": {
            "parameters": [batch],
            "post": operation(
                "Create a batch webhook",
                "It hears of the end of this batch; of one that is final already, at once.",
                made,
                faults=faults,
                parameters=key,
                body=body,
            ),
        },
    }


def webhook_schemas() -> Json:
    """Return the schemas of what the routes of webhooks answer."""
    webhook: dict[str, Json] = {
        "id": id_("wh"),
        "object": {"const": "webhook"},
        "url": TEXT,
        "events": _EVENTS,
        "batch_id": TEXT_OR_NULL,
        "created_at": TIME,
    }
    delivery: dict[str, Json] = {
        "id": id_("whd"),
        "object": {"const": "webhook.delivery"},
        "event": _EVENT,
        "event_id": id_("evt"),
        "batch_id": id_("batch"),
        "attempts": COUNT,
        "status": {"type": "string", "enum": [status.value for status in DeliveryStatus]},
        "last_status_code": {"type": ["integer", "null"]},
        "last_error": TEXT_OR_NULL,
        "next_at": TIME_OR_NULL,
        "created_at": TIME,
        "delivered_at": TIME_OR_NULL,
    }
    gone: dict[str, Json] = {"id": id_("wh"), "object": {"const": "webhook"}, "deleted": {"const": True}}
    return {
        "Webhook": object_(webhook),
        "WebhookMade": object_(webhook | {"secret": TEXT}),
        "WebhookList": list_("Webhook"),
        "WebhookDeleted": object_(gone),
        "Delivery": object_(delivery),
        "DeliveryList": list_("Delivery"),
    }
