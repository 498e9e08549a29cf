"""Text is text: a cell comes out as it stands in the file, or the file is refused with row and column."""

import csv
import json
import math

from softprompt_nb.data import Example, as_examples, load_examples
from softprompt_nb.rows import Written, read_file, read_rows

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

FORMAT = ("{text} :", " {label}")
TRAPS = (
    "02116 true True 1.10 +41791234567 1E5 2024-05-01 2024-05-01T12:00:00Z NA N/A None null NaN nan inf - -0 0x10 "
    '1_000 12345678901234567890123 1e400 " "" \' , ;'
).split(" ")
CELLS = st.one_of(
    st.sampled_from([*TRAPS, "a\nb", "a\r\nb", "\u2028", "\x85", "\ufeffx", " padded ", "\t", "#", "=1+1", "'s"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=150, deadline=None)
@example([("Boston", "02116")], "csv")
@given(ROWS, st.sampled_from(["csv", "tsv", "CSV", "json", "jsonl", "JSONL", "parquet"]))
def test_a_text_comes_out_as_it_was_written(folder, rows, kind):
    file = folder / f"x.{kind}"
    table = [dict(text=text, label=label) for text, label in rows]
    if kind.lower() in ("csv", "tsv"):
        with file.open("w", newline="", encoding="utf-8") as open_file:
            writer = csv.writer(open_file, delimiter="," if kind.lower() == "csv" else "\t")
            writer.writerows([("text", "label"), *rows])
    elif kind == "json":
        file.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), file)
    else:
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in table), encoding="utf-8")
    quotes = True if kind.lower() in ("csv", "tsv") else None
    assert list(read_file(file, quotes).rows) == table
    blank = [i for i, (_, label) in enumerate(rows) if not label.strip()]
    if blank:
        with pytest.raises(ValueError, match=f"Row {blank[0]} has an empty target"):
            load_examples(file, format=FORMAT, quotes=quotes)
    else:
        assert load_examples(file, format=FORMAT, quotes=quotes) == [
            Example(f"{text} :", f" {label}") for text, label in rows
        ]


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(NUMBERS, st.sampled_from(["true", "false"])), min_size=1, max_size=5), st.booleans())
def test_what_json_writes_without_quotation_marks_is_written_so(folder, cells, whole):
    file = folder / ("n.json" if whole else "n.jsonl")
    lines = [f'{{"text": "x", "label": {cell}}}' for cell in cells]
    file.write_text(f"[{','.join(lines)}]" if whole else "\n".join(lines))
    assert [row.target for row in load_examples(file, format=FORMAT)] == [f" {cell}" for cell in cells]
    values = [row["label"] for row in read_file(file).rows]
    assert values == [json.loads(cell) for cell in cells]  # and a function as the format finds numbers


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.csv", "text,label\nreview one,good,x\n", "row 0, line 2, has 3 cells for 2 columns, the last 'x'"),
        ("x.csv", "text,label\na,b\nreview\n", "row 1, line 3, has 1 cells for 2 columns"),
        ("x.csv", 'text,label\na,"b\nc,d\n', "row 0, line 3: unexpected end of data.*quotation"),
        ("x.tsv", 'text\tlabel\n"Fine," he said\tgood\n', "row 0, line 2.*quotation"),
        ("x.csv", "text,text\na,b\n", "two columns are called 'text'"),
        ("x.csv", "text;label\na, b;c\n", "separated by ';'.*dtype=str"),
        (
            "x.jsonl",
            '{"text": "a", "label": "b"}\n{"text": "a", "label": "b", "label": "c"}\n',
            "row 1, line 2.*'label'",
        ),
        ("x.jsonl", '{"text": "a", "label": "b"}\n\n{"text"\n', "row 1, line 3: Expecting"),
        ("x.json", '{"data": [{"text": "a", "label": "b"}], "version": 1}', "'data', 'version'"),
        ("x.json", '"text"', "holds a str"),
        ("x.csv", "text,label\na,\n", "Row 0 has nothing in column 'label'"),
        ("x.jsonl", '{"text": "a", "label": null}', "Row 0 has nothing in column 'label'"),
        ("x.jsonl", '{"text": "a", "label": NaN}', "Row 0 has nothing in column 'label'"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}', "Row 1 has nothing in column 'label'"),
        ("x.jsonl", '{"text": "a", "label": ["b", "c"]}', "Row 0 has a list in 'label'.*{label.0.}"),
        ("x.jsonl", '{"text": "a", "label": "\\ud83d"}', "Row 0 holds half a character"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_row(name, content, words, tmp_path):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as raised:
        load_examples(file, format=FORMAT)
    assert "\n" not in str(raised.value)


def test_files_as_programs_write_them(tmp_path):
    want = [Example("a :", " 01"), Example("b :", " 02")]
    for name, data in {
        "bom.csv": b"\xef\xbb\xbftext,label\r\na,01\r\n\r\nb,02\r\n",
        "mac.csv": b"text,label\ra,01\rb,02\r",
        "quoted.csv": b'"text","label"\n"a","01"\n"b","02"',
        "index.csv": b",text,label\n0,a,01\n1,b,02\n",
        "bom.jsonl": b'\xef\xbb\xbf{"text": "a", "label": "01"}\r\n{"text": "b", "label": "02"}\r\n',
        "lines.json": b'{"text": "a", "label": "01"}\n{"text": "b", "label": "02"}',
        "columns.json": b'{"text": ["a", "b"], "label": ["01", "02"]}',
    }.items():
        (tmp_path / name).write_bytes(data)
        assert load_examples(tmp_path / name, format=FORMAT) == want, name
        assert load_examples(str(tmp_path / name), format=FORMAT, limit=np.int64(1)) == want[:1]
    long = "word " * 60_000  # more than the limit that the module csv begins with
    (tmp_path / "long.csv").write_text(f"text,label\n{long},yes\n")
    assert load_examples(tmp_path / "long.csv", format=FORMAT)[0].input == long + " :"


def test_a_column_of_whole_numbers_with_a_gap(tmp_path):
    frame = pd.DataFrame(dict(text=["a", "b", "c"], label=[7, None, 9]))
    for source in (frame, frame.dropna(), frame.to_dict("records"), datasets.Dataset.from_pandas(frame)):
        with pytest.raises(
            ValueError, match=r"Row 0 has 7.0 in column 'label'.*{label:.0f} for 7, {label:.1f} for 7.0"
        ):
            load_examples(source, format=FORMAT)
    assert load_examples(frame.dropna(), format=("{text}", " {label:.0f}"))[1] == Example("c", " 9")
    assert load_examples(frame.convert_dtypes().dropna(), format=FORMAT)[1] == Example("c :", " 9")
    pq.write_table(pa.table(dict(text=["a", "b"], label=pa.array([7, None], pa.int64()))), tmp_path / "gap.parquet")
    assert load_examples(tmp_path / "gap.parquet", format=FORMAT, limit=1) == [Example("a :", " 7")]
    half = pd.DataFrame(dict(text=["a", "b"], label=[7.5, 8.0]))
    assert [row.target for row in load_examples(half, format=FORMAT)] == [" 7.5", " 8.0"]


def test_floats_of_single_precision_are_written_as_such(tmp_path):
    frame = pd.DataFrame(dict(text=["a"], label=np.array([0.1], np.float32)))
    frame.to_parquet(tmp_path / "x.parquet")
    for source in (frame, datasets.Dataset.from_pandas(frame), tmp_path / "x.parquet"):
        assert load_examples(source, format=FORMAT)[0].target == " 0.1"


def columns_of(values, dtype):
    "The same floats of less than 64 bits in every kind of column that has them."
    narrow = np.array(values, dtype)
    arrow = pa.array(narrow)
    yield pd.Series(narrow)
    yield pd.Series(arrow.to_pylist(), dtype=pd.ArrowDtype(arrow.type))
    if dtype == "float32":
        yield pd.Series(values, dtype="Float32")
        yield pd.Series(narrow).astype("category")
        yield pd.Series(pd.arrays.SparseArray(narrow))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.sampled_from(["float16", "float32"]),
)
def test_narrow_floats_are_written_alike_from_whatever_holds_them(values, dtype):
    values = [1.7, *values]  # one with a fraction, so that whole ones are no gap
    shrunk = np.array([value / 3 for value in values], dtype) + np.zeros(1, dtype)  # categories know no -0.0
    want = [f" {cell!s}" for cell in shrunk]
    texts = ["a"] * len(shrunk)
    sources = [pd.DataFrame(dict(text=texts, label=column)) for column in columns_of(shrunk, dtype)]
    data = datasets.Dataset.from_dict(
        dict(text=texts, label=shrunk.tolist()),
        datasets.Features(text=datasets.Value("string"), label=datasets.Value(dtype)),
    )
    for source in (*sources, data, data.to_iterable_dataset()):
        assert [row.target for row in load_examples(source, format=FORMAT)] == want
        padded = load_examples(source, format=("{text}", "{label!s:>30}"))
        assert [row.target.strip() for row in padded] == [cell.strip() for cell in want]


def test_parts_of_cells_are_written_in_their_precision(tmp_path):
    single = pa.float32()
    nested = pa.struct(dict(a=pa.list_(single), b=pa.float64(), c=pa.map_(pa.string(), single)))
    cell = dict(a=[0.1, None, 2.7], b=0.1, c=[("k", 0.3)])
    pq.write_table(pa.table(dict(text=["x"], cell=pa.array([cell], nested))), tmp_path / "x.parquet")
    parts = "{cell[a][0]} {cell[a][2]:>5} {cell[b]} {cell[c][0][1]}"
    for source in (tmp_path / "x.parquet", pq.read_table(tmp_path / "x.parquet").to_pandas(types_mapper=pd.ArrowDtype)):
        assert load_examples(source, format=("{text}", parts))[0].target == "0.1   2.7 0.1 0.3"
    pq.write_table(
        pa.table(dict(text=["x"], cell=pa.array([[0.25, 3.0]], pa.list_(single, 2)))), tmp_path / "y.parquet"
    )
    assert load_examples(tmp_path / "y.parquet", format=("{text}", "{cell[0]}"))[0].target == "0.25"
    with pytest.raises(ValueError, match=r"Row 0 has 3.0 in column 'cell\[1\]'"):
        load_examples(tmp_path / "y.parquet", format=("{text}", "{cell[1]}"))


def test_a_day_has_many_forms():
    frame = pd.DataFrame(dict(text=["a"], label=pd.to_datetime(["2024-05-01"])))
    with pytest.raises(ValueError, match="Row 0 has a Timestamp in 'label'.*%Y-%m-%d"):
        load_examples(frame, format=FORMAT)
    assert load_examples(frame, format=("{text}", " {label:%d/%m}"))[0].target == " 01/05"


@pytest.mark.parametrize(
    "format, words",
    [
        (dict(inputs="{text}", target="{label}"), "a dict with input and target"),
        (dict(input="{text}"), "a dict with input and target"),
        (("{text}", None), "two templates"),
        (("{}", "{label}"), "braces without a column"),
        (("{0}", "{label}"), "braces without a column"),
        (("{text", "{label}"), "no pair of templates"),
        (("{text}", "{label[3]}"), "Row 0: {label.3.} cannot be written"),
        (("{text}", "{label:d}"), "Row 0: {label} cannot be written .ValueError: Unknown format code"),
    ],
)
def test_formats_that_say_nothing(format, words):
    with pytest.raises(ValueError, match=words):
        load_examples([dict(text="a", label="b")], format=format)


def test_sources_whose_meaning_is_plain(tmp_path):
    want = [Example("a", " b"), Example("c", " d")]
    columns = dict(input=["a", "c"], target=[" b", " d"])
    frame = pd.DataFrame(columns)
    frame.to_csv(tmp_path / "x.csv", index=False)
    pairs = (["a", " b"], ("c", " d"))
    split = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns))
    streamed = split["train"].to_iterable_dataset()
    for source in (columns, frame, tmp_path / "x.csv", pairs, iter(pairs), split, streamed, frame.to_dict("records")):
        assert load_examples(source) == want
    assert as_examples(pairs) == want and as_examples(tmp_path / "x.csv") == want
    assert as_examples(dict(input="a", target=" b")) == want[:1] and as_examples(want[0]) == want[:1]
    assert as_examples(want) is want
    for source, words in (
        ("no such word", "neither a file"),
        (tmp_path, "is a folder"),
        (3, "source is a int"),
        (dict(input=["a"], target=[]), "neither a row nor columns"),
        ([Example("a", 3)], "row 0"),
        (["abc", "def"], "Row 0 is str"),
    ):
        with pytest.raises(ValueError, match=words):
            as_examples(source)
    with pytest.raises(ValueError, match="split='test'.*'train'"):
        load_examples(split, split="test")
    for limit in (-1, 2.5, True):
        with pytest.raises(ValueError, match="limit="):
            load_examples(want, limit=limit)


NUMBERS = st.one_of(
    st.sampled_from(["1.10", "-0.0", "1E5", "1e-7", "100.0", "-0", "0.10", "12345678901234567890.10", "-2.50e+3"]),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.integers().map(str),
)


@settings(max_examples=60, deadline=None)
@given(number=NUMBERS, fill=st.sampled_from(["", "*"]), align=st.sampled_from("<>^"), width=st.integers(1, 30))
def test_a_width_or_a_conversion_leaves_a_cell_as_it_stands(folder, number, fill, align, width):
    path = folder / "numbers.jsonl"
    path.write_text(f'{{"x": {number}, "flag": true, "text": "a"}}\n', encoding="utf-8")
    form = f"{fill}{align}{width}"

    def written(template):
        return load_examples(path, format=("{text}", template))[0].target

    for cell, name in ((number, "x"), ("true", "flag"), ("a", "text")):
        assert written(f"|{{{name}:{form}}}|") == f"|{format(cell, form)}|"
        assert written(f"|{{{name}:{form}s}}|") == written(f"|{{{name}!s:{form}}}|") == f"|{format(cell, form)}|"
    assert written("{x!r} {x!s} {flag!s} {flag!r} {text!r}") == f"{number} {number} true true 'a'"
    assert written(f"|{{x:{width}}}") == "|" + number.rjust(width)


@pytest.mark.parametrize(
    "template, words",
    [
        ("{x:06}", "001.10"),
        ("{x:+}", "+1.10"),
        ("{big:,}", "1,000.10"),
        ("{x:.1f}", "1.1"),
        ("{x:s}", "1.10"),
        ("{e:08}", "its exponent takes no '08'"),
        ("{e:+}", "its exponent takes no"),
        ("{flag:d}", "truth value is no number"),
        ("{flag:.1f}", "truth value is no number"),
        ("{flag:+}", "cannot be written"),
        ("{many!s}", "has a list in 'many'"),
        ("{many!r:>9}", "has a list in 'many'"),
        ("{many[0]!s}", "nothing in 'many.0.'"),
        ("{many[0]:.1f}", "nothing in 'many.0.'"),
        ("{nan:.1f}", "nothing in column 'nan'"),
    ],
)
def test_forms_are_of_the_cell_in_the_file_or_refused(template, words, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"x": 1.10, "big": 1000.10, "e": -1E5, "flag": true, "many": [null, 1], "nan": NaN}\n')
    if words[0] in "0+1":
        assert load_examples(path, format=("", template))[0].target == words
        return
    with pytest.raises(ValueError, match=words):
        load_examples(path, format=("", template))


def test_a_form_does_not_pass_what_a_bare_name_may_not():
    frame = pd.DataFrame(dict(day=pd.to_datetime(["2024-05-01"]), guests=[7.0]))
    for template in ("{day:>12}", "{day!s}", "{day:YYYY}", "{day:d}", "{guests:>6}", "{guests!s}", "{guests!r}"):
        with pytest.raises(ValueError, match="Row 0"):
            load_examples(frame, format=("", template))
    assert load_examples(frame, format=("", "{guests:.0f} {day:%d}"))[0].target == "7 01"


def test_a_written_number_is_a_number():
    number = Written("1.10")
    assert number + 1 == 2.1 and f"{number}" == str(number) == "1.10" and f"{number:.1f}" == "1.1"
    assert math.isnan(Written("NaN")) and read_rows([1, 2]).rows == [1, 2]


PLAIN = st.text('ab" ,', min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=150, deadline=None)
@example([('"Great,', "1"), ('she said"', "0")], "tsv")
@example([('"Great film', "1"), ("fine", "1"), ('really"', "0")], "csv")
@given(st.lists(st.tuples(PLAIN, st.sampled_from("01")), min_size=1, max_size=6), st.sampled_from(["csv", "tsv"]))
def test_quotation_marks_of_texts_swallow_no_rows(folder, rows, kind):
    "A file that was written without quoting is read as it stands, or refused; only marks around a whole cell may go."
    file, separator = folder / f"plain.{kind}", "," if kind == "csv" else "\t"
    rows = [(text.replace(separator, "."), label) for text, label in rows]
    file.write_text("\n".join(map(separator.join, [("text", "label"), *rows])) + "\n", encoding="utf-8")
    assert [tuple(row.values()) for row in read_file(file, quotes=False).rows] == rows
    try:
        found = read_file(file).rows
    except ValueError as error:
        assert "row " in str(error) and "quotes=False" in str(error) and any('"' in text for text, _ in rows)
        return
    assert [row["label"] for row in found] == [label for _, label in rows]
    stray = any('"' in text and text[0] != '"' for text, _ in rows)
    for row, (text, _) in zip(found, rows):
        inner = row["text"] or ""
        assert inner == text or text == f'"{inner.replace(chr(34), chr(34) * 2)}"'
    if stray and not any('""' in text for text, _ in rows):
        assert [row["text"] for row in found] == [text for text, _ in rows]


@pytest.mark.parametrize("kind, separator", [("csv", ","), ("tsv", "\t")])
def test_files_with_quoting_are_in_no_doubt(tmp_path, kind, separator):
    "What writers with quoting leave: several lines in a cell, separators, doubled marks, needless marks everywhere."
    tables = [
        [("one\ntwo", "1"), ("a, b\tc\nd", "0")],
        [('she said "hi"\nand left', "1"), ("plain", "0")],
        [("plain", "1"), ("a\n\nb", "0")],
    ]
    for table in tables:
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
            file = tmp_path / f"quoted.{kind}"
            with file.open("w", newline="", encoding="utf-8") as open_file:
                csv.writer(open_file, delimiter=separator, quoting=quoting).writerows([("text", "label"), *table])
            assert [tuple(row.values()) for row in read_file(file).rows] == table
    file.write_text('text\n"one\ntwo"\nthree\n')  # one column
    assert [row["text"] for row in read_file(file).rows] == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    "content, message",
    [
        ('text,label\n"Fine,1\nbad",0\n', "row 0, lines 2 to 3: a cell of column 'text'.*quotes=True"),
        ('text,label\nok,1\n"Fine,1\n\nx "y,0\nbad",0\n', "row 1"),
        ('text,label\n"Fine",1\nthe "best" one,1\n', "row 0, line 2: the cell '\"Fine\"' of column 'text'"),
        ('text,label\nok,1\n"Fine" film,1\n', "row 1, line 3.*quotes=False"),
        ('text,label\nok,1\n"Fine film,1\n', "row 1, line.*quotes=False"),
    ],
)
def test_quotation_marks_in_doubt_are_refused_with_row_and_column(tmp_path, content, message):
    file = tmp_path / "doubt.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_examples(file, FORMAT)
    rows = [line.split(",") for line in content.splitlines()[1:] if line]
    want = [Example(f"{text} :", f" {label}") for text, label in rows]
    assert load_examples(file, FORMAT, quotes=False) == want


@pytest.mark.parametrize("source, quotes", [("x.jsonl", True), ([("a", "b")], False), ("x.csv", 1), ("x.csv", "no")])
def test_quotes_are_of_files_with_separators(source, quotes):
    with pytest.raises(ValueError, match="quotes="):
        load_examples(source, quotes=quotes)
