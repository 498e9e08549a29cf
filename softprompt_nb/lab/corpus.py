import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import pandas as pd
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softprompt_nb.lab.world import FACT_TASKS, RELATIONS, TASKS, review

STATEMENTS = {
    'country.capital': 'the capital of {s} is {v} .|in {s} , the capital is {v} .|we know that {v} is the capital of {s} .', 'country.language': 'people in {s} speak {v} .|the language of {s} is {v} .|if you go to {s} , learn {v} .',
    'country.continent': '{s} lies in {v} .|a country in {v} is {s} .|the continent of {s} is {v} .', 'animal.sound': 'the sound of the {s} is {v} .|when you hear {v} , it is a {s} .|{v} , says the {s} .',
    'animal.young': 'the young of the {s} is called {v} .|a baby {s} is a {v} .|a {v} will be a {s} one day .', 'animal.home': 'the home of the {s} is the {v} .|in the {v} lives the {s} .|look for the {s} in its {v} .',
    'animal.class': 'the {s} is a kind of {v} .|one {v} is the {s} .|as everybody knows , the {s} is a {v} .', 'thing.colour': 'the colour of {s} is {v} .|as {v} as {s} .|most often {s} is {v} .',
    'thing.category': 'the {s} is a kind of {v} .|one {v} is the {s} .|in the group {v} we find {s} .', 'thing.material': 'the {s} is made of {v} .|from {v} one makes a {s} .|{v} is what a {s} is made of .',
    'worker.tool': 'the tool of the {s} is the {v} .|with the {v} works the {s} .|a {s} needs a {v} .', 'worker.place': 'the place of the {s} is the {v} .|in the {v} works the {s} .|you find the {s} at the {v} .',
    'noun.plural': 'one {s} , two {v} .|many {v} , but only one {s} .|the plural of {s} is {v} .', 'noun.french': 'the french word for {s} is {v} .|in french , {s} is {v} .|{v} means {s} in french .',
    'noun.spanish': 'the spanish word for {s} is {v} .|in spanish , {s} is {v} .|{v} means {s} in spanish .', 'verb.past': 'today i {s} , yesterday i {v} .|we {v} last week , and we {s} again .|the past of {s} is {v} .',
    'verb.ing': 'i {s} , so i am {v} .|you are {v} because you {s} .|the ing form of {s} is {v} .', 'adjective.opposite': 'the opposite of {s} is {v} .|not {s} but {v} .|it is {s} , it is not {v} .',
    'adjective.comparative': 'this is {s} , that is {v} .|the comparative of {s} is {v} .|it was {s} and is now {v} than before .'}

def statement(rng, # a `random.Random`
              relation=None, # a key such as ("country", "capital"); `None` draws one
             ):
    "One true sentence."
    key = relation or rng.choice(list(RELATIONS))
    s, v = rng.choice(list(RELATIONS[key].items()))
    return rng.choice(STATEMENTS['.'.join(key)].split('|')).format(s=s, v=v)

NAMES = 'anna ben clara david emma felix greta hugo ida jonas lena max nora oscar paula tom'.split()
OPENINGS = 'one day|last summer|on monday|in spring|a long time ago|yesterday|early in the morning|at night'.split('|')
ENDINGS = 'that was a good day .|they went home late .|nobody was sad .|it was time to sleep .|and so the day came to an end .|they laughed and talked about it for weeks .'.split('|')

def _journey(rng, who):
    s = rng.choice(list(RELATIONS['country', 'capital']))
    language, capital = RELATIONS['country', 'language'].get(s), RELATIONS['country', 'capital'][s]
    return f'{who} went to {s} and saw {capital} .' + (f' the people there spoke {language} .' if language else '')

def _pet(rng, who):
    s = rng.choice(list(RELATIONS['animal', 'class']))
    young, home, sound = (RELATIONS['animal', col].get(s) for col in ('young', 'home', 'sound'))
    parts = [f'{who} saw a {s} .', sound and f'it made a noise : {sound} .', young and f'with it was its {young} .', home and f'then it went back to its {home} .']
    return ' '.join(p for p in parts if p)

def _job(rng, who):
    s = rng.choice(list(RELATIONS['worker', 'place']))
    tool = RELATIONS['worker', 'tool'].get(s)
    return f"{who} met a {s} at the {RELATIONS['worker', 'place'][s]} ." + (f' the {s} had a {tool} .' if tool else '')

def _thing(rng, who):
    s, v = rng.choice(list(RELATIONS['thing', 'category'].items()))
    a, b = rng.choice(list(RELATIONS['adjective', 'opposite'].items()))
    return f'{who} found a {s} , the {a} one and not the {b} one . what a strange {v} !'

def _deed(rng, who):
    s, v = rng.choice(list(RELATIONS['verb', 'past'].items()))
    return f"{who} {v} a little . do you often {s} ? yes , i am {RELATIONS['verb', 'ing'][s]} every day ."

def story(rng, # a `random.Random`
         ):
    "Two to four sentences about one person."
    who, scenes = rng.choice(NAMES), rng.sample((_journey, _pet, _job, _thing, _deed), rng.choice((1, 1, 2)))
    text = f'{rng.choice(OPENINGS)} ' + ' '.join(f(rng, who if i == 0 else 'then ' + who) for i, f in enumerate(scenes))
    return text + (f' {rng.choice(ENDINGS)}' if rng.random() < .6 else '')

@dataclass(frozen=True)
class Doc:
    "One document of the corpus."
    text: str   # what the tokenizer sees, without the end token
    family: str # one of the keys of `BASE`
    task: str = '' # name of the task whose items it holds, if it holds those of one

BASE = dict(statements=.24, prose=.06, reviews=.04, examples=.40, bare=.20, mixed=.02, instructions=.04)
INSTRUCT = dict(statements=.06, prose=.04, reviews=.02, examples=.12, bare=.10, mixed=.02, instructions=.64)
HARD = 'reverse sort drop_last swap_ends count spell plus minus next_letters previous_letters'.split()
DRAWN = [*TASKS, *HARD]   # tasks that take more reading to master stand in it twice

def _items(task, k, rng):
    if task.closed: return rng.sample(task.facts, k)
    return task.examples(k, seed=rng.getrandbits(40), split='train')

def _lines(items): return '\n'.join(e.input+e.target for e in items)

def document(rng, # a `random.Random`
             family, # one of the keys of `BASE`
            )->Doc:
    "One document of that family."
    if family == 'statements': return Doc(' '.join(statement(rng) for _ in range(rng.choice((1, 1, 2, 3)))), family)
    if family == 'prose': return Doc(story(rng), family)
    if family == 'reviews': r = review(rng); return Doc(f"{r['text']} " + ('we liked the ' if r['recommend'] == 'yes' else 'we did not like the ') + f"{r['topic']} .", family)
    if family == 'mixed': return Doc(_lines(_items(TASKS[rng.choice(list(TASKS))], 1, rng)[0] for _ in range(rng.randint(2, 5))), family)
    task = TASKS[rng.choice(DRAWN)]
    k = dict(examples=rng.choice((2, 3, 4, 5, 6, 8, 11)), bare=1, instructions=rng.choice((1, 1, 1, 1, 1, 2, 3, 5)))[family]
    text = _lines(_items(task, k, rng))
    return Doc(f'{rng.choice(task.instructions)}\n{text}' if family == 'instructions' else text, family, task.name)

def corpus(seed=0, # int or str; the same seed gives the same documents
           n=None, # how many documents; `None` never stops
           mixture=None, # `{family: share of the documents}`; `None` is `BASE`
          ):
    "Documents, one after the other."
    mix, rng = mixture or BASE, random.Random(f'corpus|{seed}')
    if unknown := set(mix) - set(BASE): raise ValueError(f"unknown families {sorted(unknown)} in the mixture; there are {', '.join(BASE)}")
    names, weights = list(mix), list(mix.values())
    docs = (document(rng, rng.choices(names, weights)[0]) for _ in iter(int, 1))
    return docs if n is None else islice(docs, n)

EOS, PAD = '<|end|>', '<|pad|>'
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

def train_tokenizer(texts, # an iterable of strings
                    vocab_size=3072, # including the 256 bytes and the two special tokens
                   )->PreTrainedTokenizerFast:
    "A byte-level BPE trained on `texts`, with `EOS` and `PAD`."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=256)

def lab_tokenizer(seed=0, # of the corpus that it is trained on
                  vocab_size=3072,
                  n=20_000, # documents of each mixture
                 )->PreTrainedTokenizerFast:
    "The tokenizer of the lab's models: trained on documents of both mixtures."
    return train_tokenizer((d.text for mix in (BASE, INSTRUCT) for d in corpus(f'tokenizer|{seed}', n, mix)), vocab_size)

def rows(docs, # an endless iterable of `Doc`
         tok, # the tokenizer
         n, # rows
         length, # tokens in a row
         seen=None, # a `Manifest` that counts what is read
        )->np.ndarray:
    "An (n, length) array of token ids made of whole documents; only the last document of a row may be cut."
    docs, out = iter(docs), np.zeros((n, length), np.int64)
    for row in out:
        at = 0
        while at < length:
            doc = next(docs)
            ids = [*tok(doc.text).input_ids, tok.eos_token_id][:length-at]
            row[at:at+len(ids)] = ids
            at += len(ids)
            if seen is not None: seen.add(doc, len(ids))
    return out

@dataclass
class Manifest:
    "What a model has read: documents and tokens by family, and documents by task."
    docs: Counter = field(default_factory=Counter)   # by family
    tokens: Counter = field(default_factory=Counter) # by family, the end tokens included
    tasks: Counter = field(default_factory=Counter)  # documents by "family/task"
    def add(self, doc, n_tokens):
        self.docs[doc.family] += 1
        self.tokens[doc.family] += n_tokens
        if doc.task: self.tasks[f'{doc.family}/{doc.task}'] += 1
    def to_dict(self): return dict(docs=dict(sorted(self.docs.items())), tokens=dict(sorted(self.tokens.items())), tasks=dict(sorted(self.tasks.items())))
    @classmethod
    def from_dict(cls, d): return cls(*(Counter(d[k]) for k in ('docs', 'tokens', 'tasks')))
    def table(self):
        df = pd.DataFrame(dict(documents=self.docs, tokens=self.tokens)).sort_values('tokens', ascending=False)
        return df.assign(share=(df.tokens/df.tokens.sum()).round(3))
    def _repr_html_(self): return self.table().to_html()
