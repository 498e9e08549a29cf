"""Examples from everywhere, and what is refused."""

import json
import sys

from softprompt_nb.data import Example, collate, encode, encode_at, load_examples

import datasets
import pandas as pd
import pytest
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = [dict(q="one", a="uno"), dict(q='two, "three"', a="dos"), dict(q="línea", a="straße\n2")]
FORMAT = ("word : {q}", " {a}")


def written(row):
    "The format as a function."
    return Example(f"word : {row['q']}", f" {row['a']}")


WANT = [written(row) for row in ROWS]


@pytest.mark.parametrize(
    "kind", ["list", "jsonl", "json", "csv", "tsv", "parquet", "dataset", "table", "pairs", "examples", "callable"]
)
def test_every_source_gives_the_same_examples(kind, tmp_path):
    table = pd.DataFrame(ROWS)
    source = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        source.write_text("\n".join(map(json.dumps, ROWS)))
    elif kind == "json":
        source.write_text(json.dumps(ROWS))
    elif kind == "csv":
        table.to_csv(source, index=False)
    elif kind == "tsv":
        table.to_csv(source, index=False, sep="\t")
    elif kind == "parquet":
        table.to_parquet(source)
    else:
        source = dict(
            list=ROWS,
            dataset=datasets.Dataset.from_list(ROWS),
            table=table,
            pairs=[(example.input, example.target) for example in WANT],
            examples=WANT,
            callable=ROWS,
        )[kind]
    format = dict(callable=written, pairs=None, examples=None).get(kind, FORMAT)
    assert load_examples(source, format=format) == WANT
    assert load_examples(source, format=format, limit=2) == WANT[:2]


@pytest.mark.parametrize(
    "source,options,words",
    [
        ([], {}, "no rows"),
        ([("a", "")], {}, "Row 0 has an empty target"),
        ([("a", "b"), ("a", "  ")], {}, "Row 1"),
        ([3], {}, "Row 0 is int"),
        (ROWS, dict(format=("{nope}", "{a}")), "'nope'"),
        (ROWS, {}, "'input', 'target'"),
        (ROWS, dict(format="{q}"), "two templates"),
        ("nowhere.csv", {}, "no file"),
        ([Example("a", 3)], {}, "two texts"),
    ],
)
def test_bad_sources_are_refused(source, options, words):
    with pytest.raises(ValueError if source != "nowhere.csv" else FileNotFoundError, match=words):
        load_examples(source, **options)


@pytest.mark.parametrize(
    "name,data,words",
    [
        ("x.csv", b"", "is empty"),
        ("x.jsonl", b"", "is empty"),
        ("x.csv", b"q,a\n", "no rows"),
        ("x.tsv", b"q\ta\n", "no rows"),
        ("x.csv", "q,a\nf\xfcr,por\n".encode("cp1252"), "not in UTF-8.*encoding="),
        ("x.jsonl", '{"q": "f\xfcr", "a": "por"}\n'.encode("cp1252"), "not in UTF-8.*encoding="),
        ("x.jsonl", b'{"q": "one", "a": "uno"}\n{"q"\n', "could not be read"),
        ("x.parquet", b"no parquet", "could not be read"),
        ("x.csv", b"q,a\n1,2\n1,2,3,4\n", "could not be read.*line 3"),
        ("x.csv", b"q;a\none;uno\n", "separated by ';'"),
        ("x.csv", b"q\ta\none\tuno\n", r"separated by '\\t'"),
        ("x.csv", b"q\none\n", "name existing columns"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_to_do(name, data, words, tmp_path):
    "In one sentence with the file's name, and no error of another library."
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words) as raised:
        load_examples(tmp_path / name, format=FORMAT)
    assert raised.value.__cause__ is None and "\n" not in str(raised.value)


def test_a_file_of_another_kind_is_read_as_its_error_says(tmp_path):
    (tmp_path / "x.csv").write_bytes("q;a\none;f\xfcnf\n".encode("cp1252"))
    assert load_examples(pd.read_csv(tmp_path / "x.csv", sep=";", encoding="cp1252"), format=FORMAT) == [
        Example("word : one", " f\xfcnf")
    ]


@pytest.mark.parametrize("off", [True, False])
def test_reading_a_file_draws_no_bar_and_leaves_the_switch_alone(off, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.modules["datasets.utils.tqdm"], "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    was = datasets.are_progress_bars_disabled()
    (datasets.disable_progress_bars if off else datasets.enable_progress_bars)()
    try:
        pd.DataFrame(ROWS).to_csv(tmp_path / "x.csv", index=False)
        load_examples(tmp_path / "x.csv", format=FORMAT)
        assert datasets.are_progress_bars_disabled() == off and "Generating" not in capfd.readouterr().err
    finally:
        (datasets.disable_progress_bars if was else datasets.enable_progress_bars)()


@pytest.mark.parametrize("kind", ["list", "csv", "table", "jsonl", "dataset"])
def test_a_row_with_an_empty_cell_is_named(kind, tmp_path):
    "A template would write None or nan into the text."
    rows = [*ROWS, dict(q="four", a=None)]
    table = pd.DataFrame(rows)
    source = tmp_path / f"x.{kind}"
    if kind == "csv":
        table.to_csv(source, index=False)
    elif kind == "jsonl":
        source.write_text("\n".join(map(json.dumps, rows)))
    else:
        source = dict(list=rows, table=table, dataset=datasets.Dataset.from_list(rows))[kind]
    with pytest.raises(ValueError, match="Row 3 has nothing in column 'a'"):
        load_examples(source, format=FORMAT)
    assert load_examples(source, format=("word : {q}", " x"))[3] == Example("word : four", " x")


def test_an_unknown_hub_name_says_what_was_tried():
    with pytest.raises(ValueError, match="neither a file"):
        load_examples("nobody/no-such-data-set")


@settings(max_examples=50, deadline=None)
@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=10),
)
def test_encoding_keeps_the_text_and_the_border(text, target):
    lm = tiny("gpt2")
    encoded = encode(lm, Example(text, target))
    assert lm.tokenizer.decode(encoded.ids[: encoded.n_input]) == text
    assert lm.tokenizer.decode(encoded.ids[encoded.n_input : -1]) == target
    assert encoded.ids[-1] == lm.tokenizer.eos_token_id


def test_bad_batches_are_refused():
    lm = tiny("gpt2")
    ok = Example("a", "b")
    for examples, options, words in (
        ([], {}, "no examples"),
        ([ok, Example("a", "")], {}, "Row 1"),
        ([ok, Example("x" * 200, "y")], {}, "Row 1 has 202 tokens.*limit of 128"),
        ([ok], dict(at=5), "Row 0.*token 5"),
        ([ok], dict(at="middle"), "no place"),
        ([ok], dict(at=[0, 1]), "2 places for 1"),
        ([ok], dict(at="chat"), "no chat template"),
        ([ok], dict(padding_side="up"), "padding_side"),
        ([ok], dict(n_prompt=126), "limit of 128"),
    ):
        with pytest.raises(ValueError, match=words):
            collate(lm, examples, **options)


def test_a_place_for_each_row():
    lm = tiny("gpt2")
    rows = encode_at(lm, [Example("abc", "d"), Example("ef", "g")], at=[2, "before_answer"])
    assert [row.at for row in rows] == [2, 2]


def test_a_target_of_no_tokens_is_refused():
    from tokenizers import normalizers

    lm = tiny("gpt2")
    lm.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    with pytest.raises(ValueError, match="Row 1: the target '~~' tokenizes to nothing"):
        collate(lm, [Example("a", "b"), Example("a", "~~")])


@pytest.mark.parametrize(
    "format",
    [("question", "answer"), dict(input="question", target="answer"), ("Q: {question}", " answer"), ("q", "a{{b}}")],
)
def test_a_format_that_writes_every_row_alike_is_refused(format):
    rows = [dict(question="2+2", answer="4"), dict(question="3+3", answer="6")]
    with pytest.raises(ValueError, match=r"write (\{answer\}|\{question\}|a column's name in single braces)"):
        load_examples(rows, format=format)
    assert load_examples(rows, format=dict(target="{answer}")) == [Example("", "4"), Example("", "6")]


@pytest.mark.parametrize("rows", [[("2+2", "4"), ("3+3", "6")], [Example("2+2", "4"), Example("3+3", "6")]])
def test_a_format_is_applied_to_pairs_and_examples(rows):
    want = [Example("Q: 2+2\nA:", " 4"), Example("Q: 3+3\nA:", " 6")]
    assert load_examples(rows, format=("Q: {input}\nA:", " {target}")) == want
    assert load_examples(rows, format=lambda row: Example("r", "s")) == [Example("r", "s")] * 2
    with pytest.raises(ValueError, match="'question'"):
        load_examples(rows, format=("{question}", "{target}"))


def test_a_split_of_what_has_none_is_refused(tmp_path):
    rows = [dict(input="a", target="b")]
    one = datasets.Dataset.from_list(rows)
    path = tmp_path / "x.jsonl"
    path.write_text('{"input": "a", "target": "b"}\n')
    for source in (
        rows,
        one,
        one.to_iterable_dataset(),
        pd.DataFrame(rows),
        path,
        str(path),
        dict(input=["a"], target=["b"]),
    ):
        for options in (dict(split="test"), dict(split="train"), dict(name="main")):
            with pytest.raises(ValueError, match="leave (split|name) out"):
                load_examples(source, **options)
        assert load_examples(source) == [Example("a", "b")]
    both = datasets.DatasetDict(train=one, test=datasets.Dataset.from_list(rows * 2))
    assert [len(load_examples(both, split=split)) for split in (None, "train", "test")] == [1, 1, 2]
    labelled = datasets.Dataset.from_list(rows, split="test")
    assert len(load_examples(labelled, split="test")) == 1
    with pytest.raises(ValueError, match="leave split out"):
        load_examples(labelled, split="train")
