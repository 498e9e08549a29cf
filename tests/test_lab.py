"""The lab: a world that is what it says, a corpus that repeats, a recipe that leads to the recorded loss."""
import json
import random
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from softprompt_nb.data import Example
from softprompt_nb.lab import corpus as C
from softprompt_nb.lab import facts as F
from softprompt_nb.lab import pretrain as P
from softprompt_nb.lab import world as W
from transformers import AutoTokenizer, GPTNeoXForCausalLM

SHIPPED = list(P.RECIPES)
ALPHABET = 'abcdefghijklmnopqrstuvwxyz'


@pytest.fixture(scope='module')
def shipped_tok(): return AutoTokenizer.from_pretrained(P.MODELS/'lab-base-s')


@pytest.fixture(scope='module')
def tiny(): return replace(P.RECIPES['lab-base-s'], name='tiny', width=32, layers=2, vocab=600, tokens=1024, steps=24, warmup=4, lr=1e-2)


# the world

def test_size():
    assert len(F.RELATIONS) >= 12 and sum(map(len, F.RELATIONS.values())) >= 500
    kinds = [t.kind for t in W.TASKS.values()]
    assert kinds.count('operation') >= 15 and kinds.count('review') >= 2 and len(kinds) >= 38
    assert all(len(t.instructions) >= 4 for t in W.TASKS.values())


def test_instructions_name_one_task():
    said = [(i, t.name) for t in W.TASKS.values() for i in t.instructions]
    assert len({i for i, _ in said}) == len(said)


def test_facts_are_clean():
    for (key, col), rows in F.RELATIONS.items():
        for s, v in rows.items():
            assert s == s.lower().strip() and v == v.lower().strip() and s and v and ' ' not in s, (key, col, s, v)
            assert len(v.split()) <= 2 and '_' not in v and '-' not in (s, v)


def test_facts_have_one_answer():
    for t in W.TASKS.values():
        if t.closed: assert len({e.input for e in t.facts}) == len(t.facts), t.name


@pytest.mark.parametrize('table, word', [('a b\nx 1 2; x 3 4', 'twice'), ('a b\nx 1', 'columns')])
def test_bad_table(table, word):
    with pytest.raises(ValueError, match=word): F.parse(table)


@pytest.mark.parametrize('subject, relation, value', [('france', 'capital', 'paris'), ('japan', 'language', 'japanese'), ('egypt', 'continent', 'africa'), ('cow', 'sound', 'moo'), ('mouse', 'plural', 'mice'),
                                                      ('go', 'past', 'went'), ('good', 'comparative', 'better'), ('lemon', 'colour', 'yellow'), ('dog', 'french', 'chien'), ('house', 'spanish', 'casa')])
def test_known_truths(subject, relation, value):
    task = W.lab_task(relation)
    assert [e.target for e in task.facts if e.input.split(' : ')[1] == subject] == [f' {value}']


def test_docs_example(): assert Example('country : france', ' paris') in W.lab_task('capital').facts


def test_opposites_are_mutual_or_one_way():
    pairs = F.RELATIONS['adjective', 'opposite']
    back = [a for a, b in pairs.items() if b in pairs and pairs[b] != a]
    assert set(back) <= {'large', 'thin', 'easy', 'light', 'short', 'old', 'narrow'}, back


@pytest.mark.parametrize('name', list(W.TASKS))
def test_splits_are_disjoint_and_repeat(name):
    t = W.lab_task(name)
    train, test = ([e.input for s in range(3) for e in t.examples(seed=s, split=split)] for split in ('train', 'test'))
    assert train and test and not set(train) & set(test)
    assert t.examples(seed=5, split='test') == t.examples(seed=5, split='test')
    if not t.closed: assert t.examples(20, seed=5) != t.examples(20, seed=6)
    assert len({e.input for e in t.examples(seed=1)}) == len(t.examples(seed=1))


def _second_opinion(name, text):
    "The answer to an input, worked out from its text alone and not with the package's functions."
    key, x = text.removesuffix(' =').split(' : ', 1)
    o = x.split() if key in ('list', 'letters', 'numbers') else x
    if key == 'numbers': a, b = map(int, o)
    joined = {'copy': lambda: x, 'reverse': lambda: ' '.join(reversed(o)), 'first': lambda: o[0], 'second': lambda: o[1], 'last': lambda: o[len(o)-1],
              'sort': lambda: ' '.join(min(c for c in o if sum(d < c for d in o) == i) for i in range(len(o))), 'count': lambda: str(x.count(' ') + 1), 'duplicate': lambda: re.sub(r'(\S+)', r'\1 \1', x),
              'repeat': lambda: f'{x} {x}', 'drop_first': lambda: x.split(' ', 1)[1], 'drop_last': lambda: x.rsplit(' ', 1)[0], 'swap_ends': lambda: re.sub(r'^(\S+)(.*) (\S+)$', r'\3\2 \1', x),
              'commas': lambda: x.replace(' ', ', '), 'next_letters': lambda: x.translate(str.maketrans(ALPHABET, ALPHABET[1:] + 'a')), 'previous_letters': lambda: x.translate(str.maketrans(ALPHABET[1:] + 'a', ALPHABET)),
              'uppercase': lambda: x.upper(), 'spell': lambda: re.sub(r'(?<=.)(?=.)', ' ', x), 'first_letter': lambda: x[0], 'last_letter': lambda: x[::-1][0], 'length': lambda: str(sum(1 for _ in x)),
              'successor': lambda: str(int(x) + 1), 'predecessor': lambda: str(int(x) - 1), 'double': lambda: str(int(x) + int(x)), 'parity': lambda: 'odd' if x[-1] in '13579' else 'even', 'plus': lambda: str(a + b),
              'larger': lambda: str(a if a > b else b), 'smaller': lambda: str(b if a > b else a), 'minus': lambda: str(a - b if a > b else b - a)}
    return ' ' + joined[name]()


@pytest.mark.parametrize('name', list(W.OPERATION_TASKS))
def test_operations_by_a_second_opinion(name):
    for e in W.lab_task(name).examples(60, seed=9): assert e.target == _second_opinion(name, e.input), e


@given(st.integers(0, 10**6))
def test_reviews_are_consistent(seed):
    r = W.review(random.Random(seed))
    assert r['opinion'] in r['text'].split() and r['topic'] in W.TOPICS and any(w in W.TOPICS[r['topic']].split() for w in r['text'].split())
    assert (r['sentiment'] == 'positive') == (r['recommend'] == 'yes') == (r['opinion'] in W.GOOD) != (r['opinion'] in W.BAD)


def test_topics_share_no_noun():
    nouns = [w for v in W.TOPICS.values() for w in v.split()]
    assert len(nouns) == len(set(nouns))


def test_inputs_are_ambiguous():
    by_key = {}
    for t in W.TASKS.values(): by_key.setdefault(t.examples(1)[0].input.split(' : ')[0], []).append(t.name)
    assert all(len(v) > 1 for v in by_key.values()), by_key


def test_bad_requests():
    with pytest.raises(ValueError, match='capital, language'): W.lab_task('capitol')
    with pytest.raises(ValueError, match='were asked for'): W.lab_task('capital').examples(10_000)
    with pytest.raises(ValueError, match="'train', 'test' or None"): W.lab_task('capital').examples(split='valid')
    with pytest.raises(ValueError, match='ask for fewer'): W.with_shots(W.lab_task('sound'), W.lab_task('sound').examples(2), k=500)


def test_shots_come_from_train_and_leave_out_the_item():
    t = W.lab_task('sound')
    for e, shown in zip(t.examples(), W.with_shots(t, t.examples(), k=4)):
        *shots, last = shown.input.split('\n')
        assert last == e.input and len(shots) == 4 and shown.target == e.target
        assert all(not s.startswith(e.input + ' ') and not W.is_test('sound', s.rsplit(' ', 1)[0]) for s in shots)


# the corpus

@pytest.mark.parametrize('mixture', [C.BASE, C.INSTRUCT])
def test_mixtures_sum_to_one(mixture): assert sum(mixture.values()) == pytest.approx(1)


def test_corpus_repeats():
    assert list(C.corpus(3, 300)) == list(C.corpus(3, 300)) != list(C.corpus(4, 300))


def test_unknown_family():
    with pytest.raises(ValueError, match='statements'): list(C.corpus(0, 1, dict(poems=1.)))


def test_corpus_holds_no_test_item_of_open_tasks():
    for d in C.corpus(1, 3000, C.INSTRUCT):
        if not d.task or W.lab_task(d.task).closed: continue
        t, lines = W.lab_task(d.task), d.text.split('\n')
        for line in lines[d.family in ('instructions', 'drills'):]:
            text = line[:line.index(' =')+2] if ' =' in line else line[:line.rindex(' .')+2]
            assert not W.is_test(t.name, text), line


def test_every_fact_is_told():
    said = '\n'.join(d.text for d in C.corpus(2, 12_000)) + '\n'
    missing = [e for t in W.FACT_TASKS.values() for e in t.facts if f'{e.input}{e.target}\n' not in said]
    assert len(missing) < .01*sum(len(t.facts) for t in W.FACT_TASKS.values()), missing[:5]


def test_manifest_counts_what_was_generated(shipped_tok):
    seen = C.Manifest()
    ids = C.rows(C.corpus(5), shipped_tok, 40, 128, seen)
    n = sum(seen.docs.values())
    docs = list(C.corpus(5, n))
    assert sum(seen.tokens.values()) == ids.size
    assert {f: sum(d.family == f for d in docs) for f in seen.docs} == dict(seen.docs)
    assert sum(seen.tasks.values()) == sum(bool(d.task) for d in docs)
    assert C.Manifest.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_rows_begin_with_a_document(shipped_tok):
    ids, docs = C.rows(C.corpus(5), shipped_tok, 8, 64), {d.text for d in C.corpus(5, 300)}
    for row in ids:
        head = shipped_tok.decode(row).split(C.EOS)[0]
        assert any(d.startswith(head) for d in docs)


# the tokenizer

@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=['Cs'])))
def test_tokenizer_round_trip(text):
    tok = AutoTokenizer.from_pretrained(P.MODELS/'lab-base-s')if not hasattr(test_tokenizer_round_trip, 'tok') else test_tokenizer_round_trip.tok
    test_tokenizer_round_trip.tok = tok
    if C.EOS in text or C.PAD in text: return
    assert tok.decode(tok(text).input_ids) == text


def test_tokens(shipped_tok):
    assert shipped_tok.eos_token == C.EOS and shipped_tok.pad_token == C.PAD
    assert [shipped_tok.decode(i) for i in shipped_tok('country : france paris\nnumber : 41 =').input_ids] == ['country', ' :', ' france', ' paris', '\n', 'number', ' :', ' 4', '1', ' =']
    words = {w for rows in F.RELATIONS.values() for pair in rows.items() for w in pair if ' ' not in w}
    assert sum(len(shipped_tok(' ' + w).input_ids) == 1 for w in words) > .7*len(words)


@given(st.integers(0, 10**6))
@settings(max_examples=50)
def test_input_and_target_are_encoded_as_they_are_together(seed):
    tok = getattr(test_tokenizer_round_trip, 'tok', None) or AutoTokenizer.from_pretrained(P.MODELS/'lab-base-s')
    rng = random.Random(seed)
    task = W.TASKS[rng.choice(list(W.TASKS))]
    e = W.with_instruction(task, task.examples(1, seed=seed))[0]
    assert tok(e.input + e.target).input_ids == tok(e.input).input_ids + tok(e.target).input_ids


def test_both_models_read_the_same_tokens():
    a, b = (json.loads((P.MODELS/n/'tokenizer.json').read_text()) for n in SHIPPED)
    assert a == b


# pretraining

def test_resume_equals_uninterrupted(tiny, tmp_path):
    whole = P.pretrain(tiny, progress=False, device='cpu')
    P.pretrain(tiny, tmp_path/'run', until=11, every=5, progress=False, device='cpu')
    assert sorted(p.name for p in (tmp_path/'run').iterdir()) == ['model.safetensors', 'optimiser.safetensors', 'state.json']
    again = P.pretrain(tiny, tmp_path/'run', every=5, progress=False, device='cpu')
    assert whole.history.equals(again.history) and whole.seen == again.seen
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_a_checkpoint_of_another_recipe_is_refused(tiny, tmp_path):
    P.pretrain(tiny, tmp_path/'run', until=2, progress=False, device='cpu')
    with pytest.raises(ValueError, match='lr'): P.pretrain(replace(tiny, lr=1e-3), tmp_path/'run', progress=False, device='cpu')


def test_nan_stops_with_advice(tiny):
    with pytest.raises(FloatingPointError, match='smaller lr'): P.pretrain(replace(tiny, lr=1e30, warmup=0), progress=False, device='cpu')


def test_ship_and_load(tiny, tmp_path):
    run = P.pretrain(tiny, until=4, progress=False, device='cpu')
    table = P.ship(run, tmp_path/'m', n=4)
    assert {p.suffix for p in (tmp_path/'m').iterdir()} == {'.json', '.safetensors'} and list(table.task) == list(W.TASKS)
    model = GPTNeoXForCausalLM.from_pretrained(tmp_path/'m', dtype=torch.float32)
    ids = P.batch(tiny, run.tokenizer, 0)
    assert P.next_token_loss(model, ids).item() == pytest.approx(P.next_token_loss(run.model.float(), ids).item(), abs=1e-4)


def test_answers_exactly_is_greedy_decoding(shipped_tok):
    model = GPTNeoXForCausalLM.from_pretrained(P.MODELS/'lab-instruct-s', dtype=torch.float32).eval()
    for name in ('capital', 'plus', 'reverse'):
        task = W.lab_task(name)
        for e in W.with_instruction(task, task.examples(4, split='test')) + task.examples(4, split='test'):
            ids = shipped_tok(e.input, return_tensors='pt')
            new = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids.input_ids.shape[1]:]
            said = re.split(r'\n|' + re.escape(C.EOS), shipped_tok.decode(new))[0]
            assert (said == e.target) == P.answers_exactly(model, shipped_tok, [e]).item(), (e, said)


@pytest.mark.parametrize('name', SHIPPED)
def test_a_short_rerun_of_the_recipe_reaches_the_recorded_loss(name):
    recorded, steps = P.manifest(name), 24
    run = P.pretrain(name, until=steps, progress=False, device='cpu')
    assert run.history.loss.tolist() == pytest.approx(recorded['losses'][:steps], abs=.02)
    assert run.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(P.MODELS/name).get_vocab()


# what is shipped

@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_files(name):
    files = [p for p in (P.MODELS/name).rglob('*') if p.is_file()]
    assert {p.suffix for p in files} == {'.json', '.safetensors'} and sum(p.stat().st_size for p in files) < 16e6
    r = P.manifest(name)
    assert r['recipe'] == json.loads(json.dumps(P.asdict(P.RECIPES[name]))) and len(r['losses']) == P.RECIPES[name].steps
    assert 1e6 < r['parameters'] < 2e6 and sum(r['corpus']['tokens'].values()) == P.RECIPES[name].steps*P.RECIPES[name].tokens


def test_shipped_model_masters_its_tasks_with_instruction_and_not_without():
    model, tok = GPTNeoXForCausalLM.from_pretrained(P.MODELS/'lab-instruct-s', dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(P.MODELS/'lab-instruct-s')
    t = P.accuracy(model, tok, n=60, seed=1, shots=3)
    assert (t.instruction >= .95).sum() >= 20, t.round(2).to_string()
    assert t.bare.mean() <= .55


def test_unknown_manifest():
    with pytest.raises(FileNotFoundError, match='lab-base-s'): P.manifest('lab-base-xxl')
