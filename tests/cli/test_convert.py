"""`batchmill convert`: tables become requests that `check` takes, and results come back to their rows."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow  # noqa: ICN001 - no alias of two letters
import pytest
from pyarrow import parquet

from acceptance.serving import BATCHMILL, Processes, clean_environment
from batchmill.cli.check import Checked, check_lines
from batchmill.cli.convert import BadTemplate, Template, convert, read_recipe
from batchmill.cli.exit import RunExit, Stop
from batchmill.cli.joining import join
from batchmill.cli.table import read_rows
from batchmill.spec.limits import PROFILES
from batchmill.spec.models import Catalogue

_ROWS = [
    {"id": "007", "text": 'He said "no",\nthen\r\nleft; {x}', "lang ✓": "en"},
    {"id": "eight", "text": "你好，世界 🎉 \u2028 \x00", "lang ✓": ""},
    {"id": " 9", "text": "", "lang ✓": "é"},
]


def _csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    import csv  # noqa: PLC0415 - the format's own writer

    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(arrow.Table.from_pylist(rows), path)


_WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "in.csv": _csv,
    "in.tsv": lambda path, rows: _csv(path, rows, "\t"),
    "in.jsonl": _jsonl,
    "in.PARQUET": _parquet,
}


def _recipe(prompt: str, **more: Any) -> Any:  # noqa: ANN401 - any option
    options = {"model": "m", "system": None, "endpoint": "/v1/chat/completions", "column": None, "max_tokens": None}
    return read_recipe(prompt=prompt, **{**options, "sets": (), **more})


def _converted(source: Path, prompt: str, *, delimiter: str | None = None, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - as above
    output = source.with_name("requests.jsonl")
    convert(source, output, _recipe(prompt, **more), delimiter=delimiter)
    checked = Checked()
    with output.open("rb") as stream:
        errors = check_lines(
            stream.readline, checked, limits=PROFILES["open"], endpoint=None, models=None, catalogue=Catalogue()
        )
        assert list(errors) == []
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def _result(custom_id: str, content: object, **more: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}} | more
    line = {"id": "r", "custom_id": custom_id, "response": {"status_code": 200, "request_id": "q", "body": body}}
    return json.dumps(line | {"error": None}).encode() + b"\n"


def _error(custom_id: str, status: int | None) -> bytes:
    error = {"code": "batch_expired", "message": "too late"}
    body = {"error": {"message": "overloaded", "type": "server_error", "code": None}}
    response = None if status is None else {"status_code": status, "request_id": "q", "body": body}
    line = {"id": "r", "custom_id": custom_id, "response": response, "error": error if status is None else None}
    return json.dumps(line).encode() + b"\n"


@pytest.mark.parametrize("name", _WRITERS)
def test_every_kind_of_table_makes_the_same_requests(tmp_path: Path, name: str) -> None:
    """Quotes, line ends, every language, empty fields and zeros before a number are as they stand in the row."""
    _WRITERS[name](tmp_path / name, _ROWS)
    found = _converted(
        tmp_path / name,
        "{{T}} {text}|{lang ✓}",
        column="id",
        system="In {lang ✓}",
        sets=["n=1", "user=a=b"],
        max_tokens=5,
    )
    assert [each["custom_id"] for each in found] == [row["id"] for row in _ROWS]
    for each, row in zip(found, _ROWS, strict=True):
        assert each["body"] == {
            "model": "m",
            "messages": [
                {"role": "system", "content": f"In {row['lang ✓']}"},
                {"role": "user", "content": f"{{T}} {row['text']}|{row['lang ✓']}"},
            ],
            "max_tokens": 5,
            "n": 1,
            "user": "a=b",
        }


def test_values_that_are_no_text_are_told_as_such(tmp_path: Path) -> None:
    """Nothing is nothing, numbers are numbers, lists and objects are JSON; rows without ids are numbered."""
    rows = [{"a": None, "b": [1, "é"]}, {"a": 1.5, "b": []}]
    _parquet(tmp_path / "in.parquet", [row | {"b": [str(each) for each in row["b"]]} for row in rows])  # type: ignore[union-attr] # lists
    _jsonl(tmp_path / "in.jsonl", rows)
    prompts = {
        name: [each["body"]["messages"][0]["content"] for each in _converted(tmp_path / name, "<{a}> {b}")]
        for name in ("in.parquet", "in.jsonl")
    }
    assert prompts == {"in.parquet": ['<> ["1", "é"]', "<1.5> []"], "in.jsonl": ['<> [1, "é"]', "<1.5> []"]}
    assert [each["custom_id"] for each in _converted(tmp_path / "in.jsonl", "{b}")] == ["row-1", "row-2"]


@pytest.mark.parametrize(("endpoint", "member"), [("/v1/embeddings", "input"), ("/v1/completions", "prompt")])
def test_other_endpoints_have_other_bodies(tmp_path: Path, endpoint: str, member: str) -> None:
    """The prompt stands where that endpoint looks for it."""
    (tmp_path / "in.csv").write_text("a;b\nx;y\n")
    (found,) = _converted(tmp_path / "in.csv", "{a}{b}", endpoint=endpoint, delimiter=";")
    assert (found["url"], found["body"]) == (endpoint, {"model": "m", member: "xy"})


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("in.csv", "a,b\n1,2\n", {"prompt": "{c}"}, "--prompt: {} has no column 'c'; it has a, b."),
        ("in.csv", "a,b\n1,2\n", {"prompt": "{a}", "system": "{x}"}, "--system: {} has no column 'x'; it has a, b."),
        ("in.csv", "a,b\n1,2\n", {"prompt": "{a}", "column": "k"}, "--id: {} has no column 'k'; it has a, b."),
        ("in.jsonl", '{"a":1}\n', {"prompt": "{c}"}, "--prompt: {} has no column 'c'; it has a."),
        ("in.csv", "a,b\n1,2\n3\n", {"prompt": "{a}"}, "{}: line 3 has 1 fields, and there are 2 columns."),
        ("in.csv", 'a,b\n1,2\n3,"4', {"prompt": "{a}"}, "{}: line 3: unexpected end of data."),
        ("in.csv", "a,a\n1,2\n", {"prompt": "{a}"}, "{}: two columns are called 'a'."),
        ("in.csv", "", {"prompt": "x"}, "{} has no line with the names of its columns."),
        ("in.csv", "a\n", {"prompt": "{a}"}, "{} has no row."),
        ("in.csv", "a\nx\ny\nx\n", {"prompt": "{a}", "column": "a"}, "{}: row 3: its id x is that of row 1, too."),
        ("in.csv", 'a\nx\n""\n', {"prompt": "{a}", "column": "a"}, "{}: row 2 has nothing in its column 'a'"),
        ("in.csv", b"a\n\xff\n", {"prompt": "{a}"}, "{}: from line 1 on, it is not in UTF-8."),
        ("in.jsonl", "[1]\n", {"prompt": "{a}"}, "{}: line 1 is no JSON object: Expected `object`, got `array`."),
        ("in.parquet", "PAR", {"prompt": "{a}"}, "{} cannot be read as Parquet: "),
        ("in.xlsx", "x", {"prompt": "{a}"}, "{}: its name ends with none of "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, str], said: str
) -> None:
    """The column, the line or the row is told in one sentence, and nothing is written."""
    path, output = tmp_path / name, tmp_path / "out.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    prompt, more = options["prompt"], {key: value for key, value in options.items() if key != "prompt"}
    with pytest.raises(Stop) as stopped:
        convert(path, output, _recipe(prompt, **more), delimiter=None)
    assert str(stopped.value).startswith(said.format(path))
    assert stopped.value.code in {RunExit.BAD_DATA, RunExit.USAGE}
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("text", ["{", "a } b", "{}", "{a{b}}", '{"json": 1'])
def test_a_brace_alone_is_no_template(text: str) -> None:
    """It is told to be written twice."""
    with pytest.raises(BadTemplate, match="twice"):
        Template(text)


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("source", ["in.csv", "in.PARQUET"])
def test_results_come_back_to_their_rows(tmp_path: Path, source: str, name: str) -> None:
    """Each row keeps its fields; one that succeeded later stands, a failure is told, a row without a result too."""
    rows = [row | {"answer": "mine"} for row in _ROWS] + [{"id": "tools", "text": "t", "lang ✓": "", "answer": ""}]
    _WRITERS[source](tmp_path / source, rows)
    (tmp_path / "o.jsonl").write_bytes(_result("eight", 'good "你好"\n🎉') + _result("tools", None, choices=[
        {"message": {"content": None, "tool_calls": [{"id": "c"}]}, "finish_reason": "tool_calls"}
    ]))  # fmt: skip
    (tmp_path / "e.jsonl").write_bytes(_error("eight", 500) + _error("007", None) + b"\n")
    output = tmp_path / name
    found = [tmp_path / "o.jsonl", tmp_path / "e.jsonl"]
    assert join(found, tmp_path / source, output, column="id", delimiter=None) == (4, 1)
    back = {row["id"]: row for row in read_rows(output, delimiter=None)}
    assert [row["text"] for row in back.values()] == [row["text"] for row in rows]
    assert {row["answer"] for row in back.values()} == {"mine", ""}
    good, late, none, tools = (back[each] for each in ("eight", "007", " 9", "tools"))
    assert good["result_answer"] == 'good "你好"\n🎉'
    assert [str(good[each]) for each in ("finish_reason", "prompt_tokens", "completion_tokens", "status")] == [
        "stop",
        "3",
        "4",
        "200",
    ]
    assert (late["error_code"], late["error"], late["result_answer"] or "") == ("batch_expired", "too late", "")
    assert none["error_code"] == "no_result"
    assert (json.loads(tools["result_answer"]), tools["finish_reason"]) == ([{"id": "c"}], "tool_calls")
    if name.endswith("parquet"):
        assert parquet.read_schema(output).field("status").type == arrow.int64()


def test_parquet_comes_back_as_it_was(tmp_path: Path) -> None:
    """Whatever Python has no value for, over row groups of any size; joined again, no earlier column is lost."""
    nanoseconds = [1_700_000_000_123_456_789, None, -5, 1000] * 700
    columns = {
        "at": arrow.array(nanoseconds, arrow.timestamp("ns", tz="Europe/Berlin")),
        "coarse": arrow.array([each and each // 1000 * 1000 for each in nanoseconds], arrow.timestamp("ns")),
        "hour": arrow.array([each and abs(each) % 10**13 for each in nanoseconds], arrow.time64("ns")),
        "took": arrow.array(nanoseconds, arrow.duration("ns")),
        "word": arrow.array(["u", "v", None, "u"] * 700).dictionary_encode(),
        "bytes": arrow.array([b"\xff\x00", None, b"", b"x"] * 700),
        "least": arrow.array([1.5, None, -0.0, 1e30] * 700, arrow.float32()),
    }
    table, results = arrow.table(columns), tmp_path / "r.jsonl"
    source, once, twice = (tmp_path / f"{name}.parquet" for name in ("in", "once", "twice"))
    with parquet.ParquetWriter(source, table.schema) as writer:
        for start, rows in ((0, 700), (700, 1), (0, 0), (701, 2099)):
            writer.write_table(table.slice(start, rows), row_group_size=1500)
    asked = _converted(source, "{at}|{coarse}|{hour}|{took}|{word}")
    assert [each["body"]["messages"][0]["content"] for each in asked[:3]] == [
        "2023-11-14 23:13:20.123456789+0100|2023-11-14 22:13:20.123456|00:00:00.123456789|1700000000123456789|u",
        "||||v",
        "1970-01-01 00:59:59.999999995+0100|1969-12-31 23:59:59.999999|00:00:00.000000005|-5|",
    ]
    results.write_bytes(_result("row-2800", "last"))
    assert join([results], source, once, column=None, delimiter=None) == (2800, 2799)
    assert join([results], once, twice, column=None, delimiter=None) == (2800, 2799)
    back = parquet.read_table(twice)
    assert back.select(table.column_names).equals(table)
    assert [back[f"{before}answer"][2799].as_py() for before in ("", "result_")] == ["last", "last"]
    assert join([results], twice, tmp_path / "thrice.csv", column=None, delimiter=None)[0] == 2800
    inside = arrow.array([[each] for each in nanoseconds], arrow.list_(arrow.timestamp("ns")))
    parquet.write_table(arrow.table({"inside": inside}), source)
    with pytest.raises(Stop, match="its column 'inside' cannot be read"):
        _converted(source, "{inside}")


def test_a_delimiter_is_that_of_what_comes_back(tmp_path: Path) -> None:
    """A table with semicolons comes back with them; where they were not named, a column that is missing hints at it."""
    source, output, results = tmp_path / "in.csv", tmp_path / "out.csv", tmp_path / "r.jsonl"
    _csv(source, _ROWS, ";")
    results.write_bytes(_result("007", "a;b"))
    join([results], source, output, column="id", delimiter=";")
    back = list(read_rows(output, delimiter=";"))
    assert [{name: row[name] for name in _ROWS[0]} for row in back] == _ROWS
    assert back[0]["answer"] == "a;b"
    source.write_text("id;text\n1;x\n")
    with pytest.raises(Stop, match=r"has no column 'text'; it has id;text \(is --delimiter right\?\)"):
        _converted(source, "{text}")


# Runs the command with so much address space beside what Python and its libraries have mapped.
_BOUNDED = """
import resource, pyarrow.parquet, batchmill.cli.joining
from batchmill.cli.main import main
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (60 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
main()
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """100,000 rows of 1 kB go through in 60 MB, there and back."""
    source, results, back = tmp_path / "in.csv", tmp_path / "results.jsonl", tmp_path / "out.parquet"
    with source.open("w") as rows, results.open("wb") as lines:
        rows.write("id,text\n")
        for at in range(100_000):
            rows.write(f"id-{at},{'x' * 1000}\n")
            lines.write(_result(f"id-{at}", "y" * 50))
    for words in (
        [source, "-o", tmp_path / "requests.jsonl", "--model", "m", "--prompt", "{text}", "--id", "id"],
        ["--back", results, "--join", source, "--id", "id", "-o", back],
    ):
        command = [BATCHMILL[0], "-c", _BOUNDED, "convert", *map(str, words)]
        ended = subprocess.run(command, capture_output=True, env=clean_environment(), timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]
    assert parquet.read_metadata(back).num_rows == 100_000


def test_the_command_says_what_it_did(processes: Processes, tmp_path: Path) -> None:
    """From options to files and back, with its sentence on stderr; options that do not go together are told."""
    _csv(tmp_path / "in.csv", _ROWS)
    words = ["convert", tmp_path / "in.csv", "-o", tmp_path / "out.jsonl"]
    done = processes.batchmill(*words, "--model", "m", "--prompt", "{text}", "--json")
    assert (done.code, json.loads(done.out)) == (0, {"output": str(tmp_path / "out.jsonl"), "requests": 3})
    assert done.err.splitlines()[0].startswith("In 1 of 3 rows every column that --prompt names is empty")
    assert done.err.splitlines()[1] == f"3 requests in {tmp_path / 'out.jsonl'}."
    assert processes.batchmill(*words, "--model", "m").err == "--prompt is missing.\n"
    (tmp_path / "r.jsonl").write_bytes(_result("elsewhere", "x"))
    back = processes.batchmill(
        "convert", "--back", tmp_path / "r.jsonl", "--join", tmp_path / "in.csv", "-o", tmp_path / "b.csv"
    )
    assert (back.code, "3 have no result (is --id the column that it was?)" in back.err) == (0, True)
