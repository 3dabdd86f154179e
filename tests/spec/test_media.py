"""Media URLs: what is public, in every spelling of what is not."""

from dataclasses import replace

import pytest

from batchmill.spec.limits import KIMI
from batchmill.spec.media import is_public
from batchmill.spec.rules import Rules

CHAT = "/v1/chat/completions"
_PUBLIC = replace(KIMI, media_urls="public")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "HTTP://user:word@example.com:8080/a?b#c",
        "http://8.8.8.8/",
        "http://134744072",
        "http://0x8.8.8.8./",
        "http://[2001:4860:4860::8888]:80/",
        "http://[64:ff9b::808:808]/",
        "http://[2002:808:808::]/",
        "http://[::ffff:8.8.8.8]/",
        "http://münchen.example/",
        "http://xn--mnchen-3ya.example/",
        "data:image/png;base64,AAAA",
        "DATA:,a b\\c",
        "ms://file_1",
    ],
)
def test_these_are_public(url: str) -> None:
    """Names, public addresses, inline data and Kimi's Files may be fetched by any backend."""
    assert is_public(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://017700000001/",
        "http://0177.0.0.1",
        "http://0127.0.0.1",
        "http://08.8.8.8",
        "http://127.0.0.1.",
        "http://0/",
        "http://0x/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://4294967296/",
        "http://10.1.2.3/",
        "http://a@10.0.0.1/",
        "http://example.com@10.0.0.1/",
        "http://172.16.0.1",
        "http://192.168.0.1:80",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.100.100.200/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://127。0。0。1/",
        "http://①②⑦.0.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[fe80::1%25eth0]/",
        "http://[2001:4860:4860::8888%251]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fec0::1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[3fff::1]/",
        "http://[4000::1]/",
        "http://[nonsense]/",
        "http://localhost./",
        "http://LOCALHOST:80/",
        "http://a.localhost/",
        "http://metadata.google.internal/",
        "http://metadata/",
        "http:///etc/passwd",
        "http:127.0.0.1",
        "http:/127.0.0.1",
        "http://a..b/",
        "http://example.com\\@127.0.0.1/",
        " http://example.com/",
        "http://exa\nmple.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "ftp://example.com/",
        "ms:file_1",
        "javascript:alert(1)",
        "//example.com/a",
        "",
        "data",
    ],
)
def test_these_are_not(url: str) -> None:
    """Other schemes, inward names and inward addresses in any spelling are refused, and so is what is ambiguous."""
    assert not is_public(url)


def _line(part: str) -> bytes:
    body = f'{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"hi"}},{part}]}}]}}'
    return f'{{"custom_id":"a","method":"POST","url":"{CHAT}","body":{body}}}'.encode()


@pytest.mark.parametrize(
    "part",
    [
        '{"type":"image_url","image_url":{"url":"http://127.0.0.1/"}}',
        '{"type":"image_url","image_url":"http://127.0.0.1/"}',
        '{"type":"video_url","video_url":{"url":"http://127.0.0.1/"}}',
        '{"type":"input_audio","input_audio":{"data":"http://127.0.0.1/","format":"wav"}}',
        '{"image_url":{"url":"http://127.0.0.1/"},"image_url":{"url":"https://example.com"}}',
        '{"image_url":{"url":"http://127.0.0.1/","url":"https://example.com"}}',
        '{"im\\u0061ge\\u005furl":{"url":"http://127.0.0.1/"}}',
        '{"image_url":{"url":"//127.0.0.1/a"}}',
    ],
)
def test_a_line_with_such_a_url_is_refused_where_media_must_be_public(part: str) -> None:
    """The error names body.messages; by default a URL is the backend's business."""
    rules = Rules(endpoint=CHAT, limits=_PUBLIC)
    assert rules.quick(_line(part)) is None
    (error,) = rules.careful(_line(part), 7).errors
    assert (error.code, error.param, error.line) == ("invalid_request", "body.messages", 7)
    usual = Rules(endpoint=CHAT, limits=KIMI)
    assert usual.quick(_line(part)) is not None
    assert usual.careful(_line(part), 7).errors == ()


@pytest.mark.parametrize(
    "part",
    [
        '{"type":"image_url","image_url":{"url":"https://example.com/a.png","detail":"low"}}',
        '{"type":"input_audio","input_audio":{"data":"//uQAAAA","format":"mp3"}}',
        '{"type":"image_url","image_url":null,"n":' + "1" * 5000 + "}",
        '{"type":"text","text":"see http://127.0.0.1/ under image_url"}',
    ],
)
def test_other_lines_are_good_where_media_must_be_public(part: str) -> None:
    """Public URLs, base64 and text that speaks of URLs are no fault."""
    assert Rules(endpoint=CHAT, limits=_PUBLIC).careful(_line(part), 1).errors == ()


def test_a_line_without_media_is_quick() -> None:
    """The policy costs nothing where there is no URL."""
    assert Rules(endpoint=CHAT, limits=_PUBLIC).quick(_line("{}")) is not None


def test_an_input_that_is_missing_is_only_that() -> None:
    """Where the messages are no array there is nothing to look into."""
    text = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":"image_url"}}'
    repeated = text.replace(b'"messages"', b'"messages":[{"image_url":"http://[::1]/"}],"messages"', 1)
    assert len(Rules(endpoint=CHAT, limits=_PUBLIC).careful(repeated, 1).errors) == 2
    assert [e.message for e in Rules(endpoint=CHAT, limits=_PUBLIC).careful(text, 1).errors] == [
        "'body.messages' must be a non-empty array."
    ]
