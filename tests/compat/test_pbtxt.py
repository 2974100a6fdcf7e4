"""The reader of protobuf text format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmvid.compat.pbtxt import Identifier, dump, parse


@dataclass(frozen=True)
class Inner:
    label: str
    size: int = 7


@dataclass(frozen=True)
class Outer:
    count: int = 0
    rate: float = 0.0
    flag: bool = False
    text: str = ""
    kind: Identifier | None = None
    inner: Inner | None = None
    many: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    inners: tuple[Inner, ...] = ()


def read(text: str, message_type: type = Outer):
    return parse(text, message_type, source="model.pbtxt")


def test_an_empty_text_is_all_defaults():
    assert read("") == read(" \n # only a comment") == Outer()


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("-12", -12), ("- 12", -12), ("0x1F", 31), ("017", 15), ("0", 0), ("-2147483648", -(2**31))],
)
def test_integers(text, value):
    assert read(f"count: {text}").count == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-4", 1e-4), ("0.1", 0.1), (".5", 0.5), ("2.", 2.0), ("3", 3.0), ("-1.5E+2f", -150.0), ("0.25f", 0.25)),
        *(("inf", np.inf), ("-inf", -np.inf), ("Infinity", np.inf), ("1e39", np.inf)),
    ],
)
def test_floats_are_those_of_32_bits(text, value):
    with np.errstate(over="ignore"):
        assert read(f"rate: {text}").rate == float(np.float32(value))


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("false", False), ("t", True), ("0", False), ("True", True)]
)
def test_booleans(text, value):
    assert read(f"flag: {text}").flag is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"plain"', "plain"),
        ("'single \"quoted\"'", 'single "quoted"'),
        (r'"tab\tnew\nline \\ \" \' \?"', "tab\tnew\nline \\ \" ' ?"),
        (r'"\303\251\xc3\xa9\u00e9"', "ééé"),
        ('"é # { no : comment }"', "é # { no : comment }"),
        ('"one " "and"\n  \' two\'', "one and two"),
        ('""', ""),
    ],
)
def test_strings(text, value):
    assert read(f"text: {text}").text == value


def test_enum_names_are_kept_known_or_not():
    assert read("kind: UNIFORM").kind == "UNIFORM"
    assert read("kind: NEVER_HEARD_OF").kind == "NEVER_HEARD_OF"


@pytest.mark.parametrize(
    "text", ['inner { label: "a" size: 2 }', "inner: { label: 'a', size: 2 }", "inner<label:'a';size:2>;"]
)
def test_nested_messages(text):
    assert read(text).inner == Inner("a", 2)


def test_repeated_fields_and_separators():
    message = read(
        "many: 1, many: [2, 3]; many: []\nnames: 'a' 'b' names: 'c' inners { label: 'x' } inners: {label:'y'}"
    )
    assert message == Outer(many=(1, 2, 3), names=("ab", "c"), inners=(Inner("x"), Inner("y")))


def test_fields_given_by_the_caller_are_not_the_text_s():
    assert parse("size: 1", Inner, source="m", given={"label": "mine"}) == Inner("mine", 1)
    with pytest.raises(ValueError, match="unknown field 'label'"):
        parse("label: 'theirs'", Inner, source="m", given={"label": "mine"})


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("\ncuont: 1", 2, "unknown field 'cuont'; known are count, rate"),
        ("count 1", 1, "expected ':' after 'count', got 1"),
        ("count: 1 count: 2", 1, "'count' is given twice"),
        ("count: 1.5", 1, "'count' is 1.5, expected an integer"),
        ("count: 2147483648", 1, "expected an integer of 32 bits"),
        ("count: 089", 1, "expected an integer"),
        ("count: yes", 1, "'count' is yes, expected an integer"),
        ("count: '1'", 1, "expected a value for 'count', got '1'"),
        ("count: 1abc", 1, "expected a value for 'count', got 1abc"),
        ("count:", 1, "expected a value for 'count', got the end of the file"),
        ("rate: nan", 1, "'rate' is nan, expected a number"),
        ("rate: fast", 1, "'rate' is fast, expected a number"),
        ("flag: yes", 1, "'flag' is yes, expected true or false"),
        ("flag: 2", 1, "'flag' is 2, expected true or false"),
        ("kind: 2", 1, "'kind' is 2, expected a name"),
        ("text: word", 1, "expected a quoted string for 'text', got word"),
        ('text: "open\ncount: 1', 1, "expected a quoted string for 'text', got \"open"),
        (r'text: "\q"', 1, r"the string of 'text' is malformed \(unknown escape \\q"),
        (r'text: "\xff"', 1, "the string of 'text' is malformed"),
        (r'text: "\777"', 1, "the string of 'text' is malformed"),
        ("inner: 3", 1, "expected '{' after 'inner', got 3"),
        ("inner {\n label: 'a'\n", 3, "expected a field name or '}', got the end of the file"),
        ("inner {\n label: 'a' >", 2, "expected a field name or '}', got >"),
        ("count: 1\n\ninner {\n size: 1\n}", 3, "the required field 'label' is missing"),
        ("many: [1 2]", 1, r"expected ',' or '\]' in the list 'many', got 2"),
        ("count: [1]", 1, r"expected a value for 'count', got \["),
        ("}", 1, "expected a field name, got }"),
        ("%", 1, "expected a field name, got %"),
    ],
)
def test_errors_name_file_and_line(text, line, sentence):
    with pytest.raises(ValueError, match=rf"^model\.pbtxt:{line}: .*{sentence}"):
        read(text)


@given(st.text(alphabet="abcount inner{}<>[]:;,#-+.0123456789eE\"'\\\n", max_size=60))
def test_any_text_is_read_or_refused_by_a_value_error(text):
    error = None
    try:
        read(text)
    except ValueError as refusal:
        error = str(refusal)
    assert error is None or error.startswith("model.pbtxt:")


@given(st.text(max_size=30))
def test_any_string_survives_quoting(text):
    quoted = "".join(f"\\{byte:03o}" for byte in text.encode())
    assert read(f'text: "{quoted}"').text == text


FLOATS = st.floats(width=32, allow_nan=False)
INTEGERS = st.integers(-(2**31), 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INNERS = st.builds(Inner, label=TEXTS, size=INTEGERS)
OUTERS = st.builds(
    Outer,
    count=INTEGERS,
    rate=FLOATS,
    flag=st.booleans(),
    text=TEXTS,
    kind=st.none() | st.sampled_from(["UNIFORM", "CONSTANT"]).map(Identifier),
    inner=st.none() | INNERS,
    many=st.lists(INTEGERS, max_size=3).map(tuple),
    names=st.lists(TEXTS, max_size=3).map(tuple),
    inners=st.lists(INNERS, max_size=2).map(tuple),
)


@given(OUTERS)
def test_what_is_written_is_read_back(message):
    assert read(dump(message)) == message


def test_fields_may_be_left_out():
    assert dump(Outer(count=1, text="a"), leave_out=("text",)) == "count: 1\n"


def protobuf_class():
    """`Outer` as Google's own library has it, to read and write the format independently."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="outer.proto", package="test", syntax="proto2")
    enum = file.enum_type.add(name="Kind")
    for number, name in enumerate(("CONSTANT", "UNIFORM")):
        enum.value.add(name=name, number=number)
    plain = {"int": kinds.TYPE_INT32, "float": kinds.TYPE_FLOAT, "bool": kinds.TYPE_BOOL, "str": kinds.TYPE_STRING}
    for name, fields in (
        ("Inner", {"label": "str", "size": "int"}),
        (
            "Outer",
            {"count": "int", "rate": "float", "flag": "bool", "text": "str", "kind": "Kind", "inner": "Inner"}
            | {"many": "int*", "names": "str*", "inners": "Inner*"},
        ),
    ):
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            added = message.field.add(name=field, number=number, label=label)
            if kind in plain:
                added.type = plain[kind]
            else:
                added.type, added.type_name = (
                    (kinds.TYPE_ENUM if kind == "Kind" else kinds.TYPE_MESSAGE),
                    f".test.{kind}",
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Outer"))


@given(OUTERS)
def test_googles_library_reads_and_writes_the_same(message):
    text_format = pytest.importorskip("google.protobuf.text_format")
    theirs = text_format.Parse(dump(message), protobuf_class()())
    for name in ("count", "rate", "flag", "text"):
        assert getattr(theirs, name) == getattr(message, name)
    assert list(theirs.many) == list(message.many)
    assert list(theirs.names) == list(message.names)
    assert [inner.label for inner in theirs.inners] == [inner.label for inner in message.inners]
    for inner in theirs.inners:  # what is left out has our defaults, which aren't theirs
        inner.size = inner.size if inner.HasField("size") else 7
    if theirs.HasField("inner") and not theirs.inner.HasField("size"):
        theirs.inner.size = 7
    assert read(text_format.MessageToString(theirs)) == message
