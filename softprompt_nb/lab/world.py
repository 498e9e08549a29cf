import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from zlib import crc32

from softprompt_nb.data import Example
from softprompt_nb.lab.facts import RELATIONS, parse

def is_test(task, # name of the task
            text, # the item's input
           ):
    "Whether the item belongs to the test split (one third): a checksum of task and input decides, so that it holds in every process and for every seed."
    return crc32(f'{task}|{text}'.encode()) % 3 == 0

@dataclass(frozen=True)
class Task:
    "One way to get from an input to an answer, with its instructions and a seeded source of items."
    name: str                       # as in `TASKS`
    kind: str                       # "fact", "operation" or "review"
    instructions: tuple[str, ...]   # several ways to ask for the same thing
    facts: tuple[Example, ...] = () # all items there are, if the task is closed
    draw: Callable = None           # else: from a `random.Random` to one `Example`
    @property
    def closed(self): return bool(self.facts)
    def instruction(self, i=0): return self.instructions[i % len(self.instructions)]
    def __repr__(self):
        ex, size = self.examples(1)[0], f'{len(self.facts)} facts' if self.closed else 'open'
        return f'Task({self.name!r}, {self.kind}, {size}: {self.instruction()!r}, {ex.input!r} ->{ex.target!r})'

def _of(task, split, ex): return split is None or is_test(task.name, ex.input) == (split == 'test')

def _drawn(task, n, rng, split):
    "`n` different items of an open task."
    seen, tries = {}, 0
    while len(seen) < n and tries < 200*n + 1000:
        ex, tries = task.draw(rng), tries+1
        if _of(task, split, ex): seen.setdefault(ex.input, ex)
    return list(seen.values())

def _examples(self:Task,
    n=None,     # how many; `None` for every fact, or for 100 items of an open task
    seed=0,     # decides which items and in which order
    split=None, # "train", "test" or `None` for both
    )->list[Example]:
    "Different items of this task; asking for more than there are raises `ValueError`."
    if split not in (None, 'train', 'test'): raise ValueError(f"unknown split {split!r}: give 'train', 'test' or None for both")
    rng = random.Random(f'{self.name}|{seed}')
    if self.closed: found = rng.sample(self.facts, len(self.facts)); found = [e for e in found if _of(self, split, e)]
    else:           found = _drawn(self, 100 if n is None else n, rng, split)
    if n is not None and n > len(found): raise ValueError(f"{self.name} has {len(found)} different {split or ''} items, and {n} were asked for: ask for fewer, or leave n out")
    return found[:n]
Task.examples = _examples

FACTS = """
capital | country.capital | give the capital of the country . | what is the capital of this country ? | name the capital city : | country to capital
language | country.language | give the language of the country . | what language do people speak there ? | name the language spoken in this country : | country to language
continent | country.continent | give the continent of the country . | on which continent does it lie ? | name the continent : | country to continent
sound | animal.sound | give the sound of the animal . | what does this animal say ? | name the noise it makes : | animal to sound
young | animal.young | give the young of the animal . | what is its baby called ? | name the young one : | animal to young
home | animal.home | give the home of the animal . | where does this animal live ? | name the place it lives in : | animal to home
class | animal.class | give the class of the animal . | what kind of animal is it ? | is it a mammal , a bird or something else ? | animal to class
colour | thing.colour | give the colour of the thing . | what colour is it ? | name its colour : | thing to colour
category | thing.category | give the category of the thing . | what kind of thing is it ? | name the group it belongs to : | thing to category
material | thing.material | give the material of the thing . | what is it made of ? | name the stuff it is made from : | thing to material
tool | worker.tool | give the tool of the worker . | what does this worker use ? | name the thing they work with : | worker to tool
place | worker.place | give the place of the worker . | where does this worker work ? | name the place of work : | worker to place
plural | noun.plural | give the plural of the noun . | what are several of them called ? | write the word for many : | noun to plural
french | noun.french | give the french word . | how do you say it in french ? | translate into french : | english to french
spanish | noun.spanish | give the spanish word . | how do you say it in spanish ? | translate into spanish : | english to spanish
past | verb.past | give the past of the verb . | what is the past tense ? | write the verb as of yesterday : | verb to past
ing | verb.ing | give the ing form of the verb . | what is the form with ing ? | write it as happening now : | verb to ing
opposite | adjective.opposite | give the opposite of the adjective . | what is the contrary ? | write the word that means the reverse : | adjective to opposite
comparative | adjective.comparative | give the comparative of the adjective . | what is the form with more ? | write the form used before than : | adjective to comparative
"""

def _facts(line):
    name, where, *asks = [o.strip() for o in line.split('|')]
    key, col = where.split('.')
    return Task(name, 'fact', tuple(asks), tuple(Example(f'{key} : {s}', f' {v}') for s, v in RELATIONS[key, col].items()))

def _lines(text): return [o for o in text.strip().splitlines() if o]

FACT_TASKS = {t.name: t for t in map(_facts, _lines(FACTS))}

COMMON = ("dog cat cow horse sheep pig duck hen lion bear fox owl frog bee mouse lemon plum cherry apple pear tea milk bread egg cake rose tree leaf star moon sun sea river hill "
          "road door key cup hat shoe coat bed chair table book pen car bus ship king queen hand foot eye ear red blue green white black").split()
WORDS = sorted({w for (key, _), rows in RELATIONS.items() if key in ('animal', 'noun', 'adjective', 'verb') for w in rows if 3 <= len(w) <= 5} | {w for w in COMMON if len(w) > 2})
LETTERS = 'abcdefghijklmnopqrstuvwxyz'

def _shift(c, by): return LETTERS[(LETTERS.index(c)+by) % 26]
def _swap(o): return [o[-1], *o[1:-1], o[0]]
def _twice(o): return [x for x in o for _ in (0, 1)]

OPERATIONS = dict(
    copy=list, reverse=lambda o: o[::-1], first=lambda o: o[:1], second=lambda o: o[1:2], last=lambda o: o[-1:], sort=sorted, count=lambda o: [len(o)], duplicate=_twice, repeat=lambda o: o+o,
    drop_first=lambda o: o[1:], drop_last=lambda o: o[:-1], swap_ends=_swap, commas=lambda o: [', '.join(o)], next_letters=lambda o: [_shift(c, 1) for c in o],
    previous_letters=lambda o: [_shift(c, -1) for c in o], uppercase=lambda o: [c.upper() for c in o], spell=list, first_letter=lambda w: w[:1], last_letter=lambda w: w[-1:], length=lambda w: [len(w)],
    successor=lambda n: [n+1], predecessor=lambda n: [n-1], double=lambda n: [2*n], parity=lambda n: ['odd' if n % 2 else 'even'],
    plus=lambda o: [o[0]+o[1]], larger=lambda o: [max(o)], smaller=lambda o: [min(o)], minus=lambda o: [abs(o[0]-o[1])])

def _list(rng):
    pool = rng.choice((LETTERS, LETTERS, COMMON, '0123456789'))
    return rng.sample(pool, rng.choice((3, 3, 4, 4, 5)))
def _letters(rng): return [rng.choice(LETTERS) for _ in range(rng.choice((2, 3)))]
def _numbers(rng):
    top = rng.choice((10, 20))
    return rng.sample(range(top+1), 2)
DRAWS = dict(list=_list, letters=_letters, numbers=_numbers)
DOMAINS = dict(word=WORDS, number=range(1, 100))

def _answer(out): return ' ' + ' '.join(map(str, out))
def _ask(key, x): return f'{key} : {x}' if key == 'word' else f"{key} : {' '.join(map(str, x)) if isinstance(x, list) else x} ="

OPERATION_TEXTS = """
copy | list | copy the list . | write the same list again . | repeat what you see : | list to copy
reverse | list | reverse the list . | write the list backwards . | from the end to the start : | list to reverse
first | list | give the first item . | what does the list begin with ? | only the first one : | list to first
second | list | give the second item . | what comes second ? | only the second one : | list to second
last | list | give the last item . | what does the list end with ? | only the last one : | list to last
sort | list | sort the list . | put the list in order . | from low to high , or from a to z : | list to sorted
count | list | count the items . | how many items are there ? | the number of items : | list to count
duplicate | list | write each item twice . | double every item . | every one two times : | list to pairs
repeat | list | write the whole list twice . | say the list two times . | the list and then the list again : | list to repeat
drop_first | list | leave out the first item . | remove the first one . | all but the first : | list without first
drop_last | list | leave out the last item . | remove the last one . | all but the last : | list without last
swap_ends | list | swap the first and the last item . | exchange the two ends . | first and last change places : | list with swapped ends
commas | list | put commas between the items . | separate the list with commas . | join with commas : | list to commas
"""

OPERATION_TEXTS += """
next_letters | letters | give the next letter for each . | move each letter one forward . | what comes after each letter ? | letters to next
previous_letters | letters | give the previous letter for each . | move each letter one back . | what comes before each letter ? | letters to previous
uppercase | letters | write the letters in upper case . | make them capital letters . | use big letters : | letters to upper case
spell | word | spell the word . | write the word letter by letter . | all its letters : | word to letters
first_letter | word | give the first letter of the word . | what letter does it begin with ? | only its first letter : | word to first letter
last_letter | word | give the last letter of the word . | what letter does it end with ? | only its last letter : | word to last letter
length | word | count the letters of the word . | how many letters does it have ? | its length : | word to length
successor | number | give the next number . | add one . | what number comes after ? | number to next
predecessor | number | give the previous number . | take away one . | what number comes before ? | number to previous
double | number | double the number . | what is two times the number ? | twice as much : | number to double
parity | number | is the number even or odd ? | say even or odd . | can it be halved ? even or odd : | number to parity
plus | numbers | add the numbers . | what is the sum ? | both together : | numbers to sum
larger | numbers | give the larger number . | which number is more ? | only the bigger one : | numbers to larger
smaller | numbers | give the smaller number . | which number is less ? | only the smallest one : | numbers to smaller
minus | numbers | give the difference of the numbers . | how far apart are they ? | the larger minus the smaller : | numbers to difference
"""

def _operation(line):
    name, key, *asks = [o.strip() for o in line.split('|')]
    op = OPERATIONS[name]
    def item(x): return Example(_ask(key, x), _answer(op(x)))
    def draw(rng): return item(DRAWS[key](rng))
    if key in DOMAINS: return Task(name, 'operation', tuple(asks), tuple(item(x) for x in DOMAINS[key]))
    return Task(name, 'operation', tuple(asks), draw=draw)

OPERATION_TASKS = {t.name: t for t in map(_operation, _lines(OPERATION_TEXTS))}

TOPICS = dict(food='soup pizza salad pasta sandwich dessert', film='film movie actor ending scene trailer', hotel='room lobby pool hotel bathroom balcony', book='novel chapter author book story plot',
              phone='phone screen battery camera keyboard charger')
GOOD, BAD = 'great superb lovely excellent wonderful perfect delightful charming fantastic brilliant'.split(), 'awful terrible boring horrible disappointing poor dreadful useless annoying mediocre'.split()
FRAMES = ('the {n} was {d} .', 'i found the {n} {d} .', 'what a {d} {n} .', 'the {n} was really {d} .', 'we thought the {n} was {d} .', 'my sister says the {n} is {d} .', 'a {d} {n} , all in all .', 'the {n} is {d} and everybody knows it .',
          'last week we tried it . the {n} was {d} .', 'in short , the {n} is quite {d} .', 'nobody told me how {d} the {n} was .', 'my friend sent me a note about it . the {n} is {d} .')

def review(rng, # a `random.Random`
          ):
    "A made-up review as a dict: its text and what is true of it."
    topic, good = rng.choice(list(TOPICS)), rng.random() < .5
    d = rng.choice(GOOD if good else BAD)
    text = rng.choice(FRAMES).format(n=rng.choice(TOPICS[topic].split()), d=d)
    return dict(text=text, topic=topic, sentiment='positive' if good else 'negative', recommend='yes' if good else 'no', opinion=d)

REVIEW_TEXTS = """
sentiment | is the review positive or negative ? | what is the sentiment ? | how does the writer feel , positive or negative ? | review to sentiment
topic | give the topic of the review . | what is the review about ? | is it about food , a film , a hotel , a book or a phone ? | review to topic
recommend | would the writer recommend it , yes or no ? | does the writer want others to try it ? | say yes or no : is it worth it ? | review to recommend
opinion | give the word that tells the opinion . | which word in the review judges it ? | copy the adjective : | review to opinion
"""

def _review_task(line):
    name, *asks = [o.strip() for o in line.split('|')]
    def draw(rng): r = review(rng); return Example(f"review : {r['text']}", f' {r[name]}')
    return Task(name, 'review', tuple(asks), draw=draw)

REVIEW_TASKS = {t.name: t for t in map(_review_task, _lines(REVIEW_TEXTS))}

TASKS = FACT_TASKS | OPERATION_TASKS | REVIEW_TASKS

def lab_task(name, # one of `TASKS`
            )->Task:
    "The task of that name; any other name raises `ValueError` and lists those there are."
    if name not in TASKS: raise ValueError(f"no task {name!r} in the lab; its tasks are {', '.join(TASKS)}")
    return TASKS[name]

def with_instruction(task, examples,
                     i=0, # which of the task's instructions
                    )->list[Example]:
    "The examples with one of the task's instructions on a line above the input."
    return [Example(f'{task.instruction(i)}\n{e.input}', e.target) for e in examples]

def with_shots(task, examples,
               k=5,    # solved items above each input, from the train split
               seed=0, # decides which
              )->list[Example]:
    "The examples with `k` other solved items above each input, drawn anew for every example."
    rng, out = random.Random(f'{task.name}|shots|{seed}'), []
    pool = task.examples(None if task.closed else 10*k+50, seed=seed, split='train')
    for e in examples:
        shots = [s for s in rng.sample(pool, min(k+1, len(pool))) if s.input != e.input][:k]
        if len(shots) < k: raise ValueError(f"{task.name} has only {len(pool)} solved items to show, and k={k} were asked for: ask for fewer")
        out.append(Example('\n'.join([*(s.input+s.target for s in shots), e.input]), e.target))
    return out
