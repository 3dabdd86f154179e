import pytest

from api.served import LINE, Tenant, file_part, text_part

BATCH = text_part("purpose", "batch")
BASE64 = file_part(LINE).replace(b"Content-Type", b"Content-Transfer-Encoding: base64\r\nContent-Type")
AFTER = "after=batch_" + "0" * 46


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/batches?limit=1&limit=2", "limit"),
        (f"/v1/batches?{AFTER}&{AFTER}", "after"),
        ("/v1/files?order=asc&order=desc", "order"),
        ("/v1/files?purpose=batch&purpose=batch_output", "purpose"),
    ],
)
def test_a_parameter_that_stands_twice_is_refused(tenant: Tenant, path: str, param: str) -> None:
    """Nobody can tell which of the two was meant, so neither is taken."""
    assert tenant.call("GET", path).error == (400, "invalid_request_error", param, "invalid_value")


def test_a_purpose_with_a_nul_is_refused(tenant: Tenant) -> None:
    """No database is asked for what none of them stores alike."""
    assert tenant.call("GET", "/v1/files?purpose=%00").error == (
        400,
        "invalid_request_error",
        "purpose",
        "invalid_value",
    )


def test_an_empty_body_is_called_empty(tenant: Tenant) -> None:
    """A create without a body is told that there is none, not where the JSON is broken."""
    assert "empty" in tenant.call("POST", "/v1/batches", b"").json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"input_file_id=file_1", "cannot be read as JSON: invalid character (byte 0)."),
        (b'{"a":1,}', "cannot be read as JSON: trailing comma in object (byte 7)."),
        (b'{"a":' + b"9" * 5000 + b"}", "cannot be read as JSON: Integer value out of range"),
    ],
)
def test_a_body_that_cannot_be_read_says_where(tenant: Tenant, body: bytes, said: str) -> None:
    """The place is told once, and a number too large is not called bad JSON."""
    assert said in tenant.call("POST", "/v1/batches", body).json["error"]["message"]


@pytest.mark.parametrize("path", ["/files", "/v1/files/", "/v1", "/V1/files"])
def test_a_path_that_is_none_names_those_that_are(tenant: Tenant, path: str) -> None:
    """A client whose base URL lacks its /v1 reads what to mend."""
    assert "/v1/files" in tenant.call("GET", path).json["error"]["message"]


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((BATCH, BASE64), "file"),
        (
            (BATCH, text_part("expires_after", '{"anchor":"created_at","seconds":3600}'), file_part(LINE)),
            "expires_after",
        ),
    ],
    ids=["a file in base64", "an expiry as JSON"],
)
def test_what_would_be_misread_is_refused(tenant: Tenant, parts: tuple[bytes, ...], param: str) -> None:
    """A file that is not sent as it is, and an expiry that would be overlooked, are errors; nothing is kept."""
    assert tenant.send_form(*parts).error == (400, "invalid_request_error", param, "invalid_value")
    assert tenant.call("GET", "/v1/files").json["data"] == []
