"""Error groups: one cause is one group, whatever differs from line to line."""

import tracemalloc
from time import process_time

import msgspec
import pytest

from batchmill.spec.groups import group_of, is_group
from batchmill.spec.results import answered, unanswered

ID = b'"r-1"'


def failed(body: object, status: int = 400) -> bytes:
    """Return a line of the error file."""
    return answered("batch_req_1", ID, status, "req_1", msgspec.json.encode(body))


def test_the_same_fault_of_two_lines_is_one_group() -> None:
    """Numbers, ids and quoted words are left out of a message; what is left decides."""
    texts = [
        "This model's maximum is 4096 tokens, but you asked for 5123 in request chatcmpl-9f2 ('abc').",
        "This model's maximum is 4096 tokens, but you asked for 77 in request chatcmpl-1aa ('d\ne').",
    ]
    groups = {group_of(failed({"error": {"message": text, "code": "context_length_exceeded"}}))[1].id for text in texts}
    assert len(groups) == 1


def test_a_group_says_status_code_and_message() -> None:
    """A group is known by what the backend said; the custom_id comes with it."""
    custom_id, group, _ = group_of(failed({"error": {"message": "Too  long: 12", "type": "bad", "code": None}}, 413))
    assert custom_id == "r-1"
    assert (group.status, group.code, group.message) == (413, "bad", "Too long: N")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"message": "no", "code": "c", "type": "t"}}, "c", "no"),
        ({"error": {"code": 7}}, "7", "{'…':N}"),
        ({"error": "just words"}, None, "just words"),
        ({"object": "error", "message": "flat", "code": 40}, "40", "flat"),
        ({"detail": [{"loc": ["body"]}]}, None, "[{'…':['…']}]"),
        ({"else": True}, None, "{'…':true}"),
        ([1], None, "[N]"),
    ],
)
def test_every_shape_of_an_error_is_read(body: object, code: str | None, message: str) -> None:
    """OpenAI's, FastAPI's and flat errors have their own words; any other body is its own message."""
    group = group_of(failed(body))[1]
    assert (group.code, group.message) == (code, message)


def test_a_line_without_an_answer_is_grouped_by_our_code() -> None:
    """`batch_expired` and the like are groups, too, without a status."""
    group = group_of(unanswered("batch_req_1", ID, "batch_expired", "The window closed."))[1]
    assert (group.status, group.code, group.message) == (None, "batch_expired", "The window closed.")


def test_a_line_that_says_nothing_is_a_group_of_its_own() -> None:
    """Neither response nor error: the group has no words."""
    group = group_of(b'{"custom_id":"r-1","response":null,"error":null}')[1]
    assert (group.status, group.code, group.message) == (None, None, "")


def test_what_is_no_result_line_is_refused() -> None:
    """Damage is an error, never a group."""
    with pytest.raises(ValueError, match="not a line"):
        group_of(b"{")


def test_a_long_message_is_cut() -> None:
    """A message is shown with at most 200 characters."""
    assert len(group_of(failed({"error": {"message": "x y " * 500}}))[1].message) == 200


def test_an_example_is_the_message_as_it_came() -> None:
    """With all that is left out of the group's own message, and with at most 1,000 characters."""
    custom_id, group, example = group_of(failed({"error": {"message": "Too  long: 'a b' has 12\n"}}))
    assert (custom_id, group.message, example) == ("r-1", "Too long: '…' has N", "Too  long: 'a b' has 12\n")
    assert group_of(failed({"detail": {"n": 5}})).example == '{"n":5}'
    assert group_of(failed({"error": {"message": "雨" * 1500}})).example == "雨" * 1000
    assert group_of(b'{"custom_id":"r-1"}').example == ""


def test_a_number_out_of_range_is_words_too() -> None:
    """A backend may say what is JSON and no number of ours."""
    text = answered("batch_req_1", ID, 400, "req_1", b'{"error":{"message":1e999,"code":1e999}}')
    group = group_of(text)[1]
    assert (group.code, group.message) == ("1e999", "N")


def test_a_large_body_is_not_built() -> None:
    """One that is no text is its own message by its first characters: no object is made of the rest."""
    body = b'{"error":{"message":[%b0]}}' % (b"0," * 500_000)
    text = answered("batch_req_1", ID, 400, "req_1", body)
    tracemalloc.start()
    group = group_of(text)[1]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert group.message.startswith("[N,N,")
    assert most < 4 * len(body)  # copies of the bytes; of the numbers it would be more, and of objects many times that


def test_null_is_no_message() -> None:
    """Whatever stands around it."""
    assert group_of(answered("batch_req_1", ID, 400, "req_1", b" null "))[1].message == ""


@pytest.mark.parametrize("piece", ["a-", "a.b/", "-", "1-", "' ", "'a ", "\"a' "])
def test_a_message_that_somebody_made_up_takes_no_time(piece: str) -> None:
    """A thousand such lines, each another, would else hold up every commit for half a minute."""
    began = process_time()
    for number in range(100):
        group_of(failed({"error": {"message": f"{number} " + piece * (2000 // len(piece))}}))
    assert process_time() - began < 0.5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x-1y.2 (-3.5) ./4/. a-b --5-- v6", "N (-N) ./N/. a-b --N-- N"),
        ("٣ a٣ ² é1é", "N N ² N"),
        ("gpt-4o, 12,5", "N, N,N"),
    ],
)
def test_what_has_a_digit_in_it_is_left_out(text: str, shown: str) -> None:
    """Whole words, with what joins them; brackets and dashes around them stay."""
    assert group_of(failed({"error": {"message": text}}))[1].message == shown


def test_a_nul_is_shown() -> None:
    """No database keeps one in a text."""
    group = group_of(failed({"error": {"message": "a\0b", "code": "c\0"}}))[1]
    assert (group.code, group.message) == ("c\N{REPLACEMENT CHARACTER}", "a\N{REPLACEMENT CHARACTER}b")


def test_an_id_of_a_group_has_its_shape() -> None:
    """What a client names is looked for only if it may be one."""
    assert is_group(group_of(failed({"error": {"message": "no"}}))[1].id)
    assert not is_group("no group")
