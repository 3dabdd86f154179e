"""What S3 can do and obstore has no call for: uploads in parts that nobody ended, and links that name the download.

obstore signs and sends a request for any object, but without a query of ours. So each request here has a store of its
own, whose address ends in the query and an `x-id=`; what obstore appends as the object's path becomes the value of that
parameter, which S3 signs and pays no heed to (Amazon's own clients send it). Credentials, retries and TLS stay the
library's, whatever chain the credentials come by; a signature of our own would have to know that chain.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import obstore
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """An upload in parts that was begun at this Unix second and neither completed nor aborted."""

    path: str
    upload_id: str
    begun: float


class S3Requests:
    """Requests with a query, about the objects of one bucket; all block, and raise what obstore raises."""

    def __init__(self, *, bucket: str, client_options: "ClientConfig", retry_config: "RetryConfig") -> None:
        self._bucket = bucket
        self._client = client_options
        self._retry = retry_config
        self._whole = S3Store(bucket, client_options=client_options, retry_config=retry_config)

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Name the unfinished uploads whose path begins so."""
        marker: dict[str, str] = {}
        while True:
            store = self._store(self._address(), {"uploads": "", "prefix": prefix, **marker})
            page = ET.fromstring(bytes(obstore.get(store, "ListMultipartUploads").bytes()))  # noqa: S314 - our own bucket's answer
            for upload in page.findall("{*}Upload"):
                yield Unfinished(
                    path=_text(upload, "Key"),
                    upload_id=_text(upload, "UploadId"),
                    begun=datetime.fromisoformat(_text(upload, "Initiated")).timestamp(),
                )
            if _text(page, "IsTruncated") != "true":
                return
            marker = {
                "key-marker": _text(page, "NextKeyMarker"),
                "upload-id-marker": _text(page, "NextUploadIdMarker"),
            }

    def abort(self, upload: Unfinished) -> None:
        """Give an unfinished upload up, and its parts; FileNotFoundError where it has ended by itself."""
        obstore.delete(self._store(self._address(upload.path), {"uploadId": upload.upload_id}), "AbortMultipartUpload")

    def link(self, path: str, *, seconds: int, disposition: str, media_type: str) -> str:
        """Return a URL that gives an object's bytes under these headers, for so many seconds."""
        query = {"response-content-disposition": disposition, "response-content-type": media_type}
        return obstore.sign(self._store(self._address(path), query), "GET", "GetObject", timedelta(seconds=seconds))

    def _address(self, path: str = "") -> str:
        """Return the plain URL of an object, or of the bucket: a signed one says it, whatever endpoint is set."""
        url, _, _ = obstore.sign(self._whole, "GET", path or "x", _MINUTE).partition("?")
        return url if path else url.removesuffix("/x")

    def _store(self, address: str, query: Mapping[str, str]) -> S3Store:
        return S3Store(
            self._bucket,
            endpoint=f"{address}?{urlencode(query, quote_via=quote)}&x-id=",
            virtual_hosted_style_request=True,  # the endpoint is used as it is
            disable_bulk_delete=True,
            client_options=self._client,
            retry_config=self._retry,
        )


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""
