"Everything that people type: `from softprompt_nb.all import *`."

from softprompt_nb.conditional import ConditionalPrompt, SubspacePrompt
from softprompt_nb.data import Batch, Example, collate, load_examples
from softprompt_nb.studies.structure import ShapeConfig, arms, compare_arms, shape_configs, solved_at
from softprompt_nb.studies.calibration import Calibration, calibrate
from softprompt_nb.evaluation.distance.capabilities import (
    Capability,
    detuning,
    from_examples,
    lab_families,
    pathfinding,
    plain_text,
    repetition,
    skipping,
)
from softprompt_nb.evaluation.distance.measures import Ladder
from softprompt_nb.evaluation.distance.figures import plot_families, plot_ladder, plot_saturation, plot_vectors_worth
from softprompt_nb.evaluation.distance.ladder import ladder, loss_by_vector
from softprompt_nb.evaluation.distance.protocol import stability, subspace
from softprompt_nb.studies.published import PUBLISHED, published
from softprompt_nb.evaluation.formats.benchmarks import HUB, Benchmark, load_benchmark
from softprompt_nb.evaluation.formats.curve import FormatCurve, format_curve
from softprompt_nb.studies.format import LAB_PAIRS, FormatConfig, FormatStudy, paper_configs, study_configs
from softprompt_nb.evaluation.formats.formats import FORMATS, Format, Item
from softprompt_nb.evaluation.formats.knowledge import (
    FormatReport,
    Shots,
    Way,
    format_and_knowledge,
    option_table,
    paired_difference,
)
from softprompt_nb.evaluation.formats.lab_benchmarks import LAB_BENCHMARKS, lab_benchmark, planted_knowledge
from softprompt_nb.evaluation.formats.ranking import agreement_difference, rank_agreement
from softprompt_nb.evaluation.interpretability import (
    Frontier,
    choose,
    divergence,
    faithfulness,
    frontier,
    hypervolume,
    predictability,
    scrutability,
    waywardness,
)
from softprompt_nb.studies.readable import HardConfig, gpt2_configs, hard_configs, hard_table, hypervolumes, oddities
from softprompt_nb.lab.family import Truth, lab_model, lab_truth
from softprompt_nb.lab.forms import FORMS, question, read_reply
from softprompt_nb.lab.games import game_item, is_legal_next, legal_moves, read_game
from softprompt_nb.lab.grammar import GRAMMAR, composed, grammar
from softprompt_nb.lab.mazes import Maze, maze_item, read_maze, walk
from softprompt_nb.lab.planted import PLANTED
from softprompt_nb.lab.world import TASKS, lab_task, with_instruction, with_shots
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import lab_models, load_lm
from softprompt_nb.measure import Measured, mean, over_runs, proportion, resamples
from softprompt_nb.plots import COLORS, plot_histories, plot_history, plot_runs, plot_shares, plot_vectors
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.tda.evolution import Evolution, evolution, rank_correlation, shape_at_end
from softprompt_nb.tda.penalties import (
    L2,
    Connectivity,
    PairDistance,
    RandomDirection,
    Signature,
    TotalPersistence,
    Weighted,
)
from softprompt_nb.tda.persistence import Diagram, Diagrams, persistence
from softprompt_nb.tda.summaries import (
    against_null,
    betti_curve,
    diagram_distance,
    distance_against_null,
    landscape,
    persistence_entropy,
    summarize,
    total_persistence,
)
from softprompt_nb.tda.tsloss import TSLoss, distinct, gradient_length
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog, Progress, Track
from softprompt_nb.experiments.configs import TuneConfig
from softprompt_nb.engine.forward import assemble, prompted_loss, prompted_losses, target_logits
from softprompt_nb.engine.inference import exact_match, generate, loss_on, score_options, to_prompt_embeds
from softprompt_nb.training.many import Runs, tune_many
from softprompt_nb.experiments.runs import Record, Result, RunStore, content_hash
from softprompt_nb.experiments.sweep import Serial, Sweep, sweep
from softprompt_nb.training.step import Settings
from softprompt_nb.training.tuning import Run, TuningDiverged, tune
from softprompt_nb.translation.hard.baselines import greedy_coordinate, random_search, written
from softprompt_nb.translation.hard.gcg import GCGConfig, gcg
from softprompt_nb.translation.hard.objective import HardPrompt, Objective, Reader
from softprompt_nb.translation.hard.pez import PEZConfig, parsability, pez
from softprompt_nb.translation.hard.rlprompt import RLConfig, rlprompt
from softprompt_nb.translation.translator.dods import DoD, TaskSet, induction_dod, lab_dod, natural_dod, own_dod
from softprompt_nb.translation.translator.evaluate import execute, judge, method_table
from softprompt_nb.translation.readings.inspect import (
    Readings,
    TargetText,
    best_of_all,
    choose_pair,
    inspect_prompt,
    target_text,
)
from softprompt_nb.translation.translator.refine import prefer, preferences, refine
from softprompt_nb.translation.translator.confidence import reliability
from softprompt_nb.translation.translator.rerank import rerank, text_divergence
from softprompt_nb.translation.translator.texts import rouge_l, similarity, verb_score, word_scores
from softprompt_nb.translation.translator.train_prompts import Pair, Pairs, train_prompts
from softprompt_nb.translation.translator.transfer import Endpoint, compare_transfer, transfer
from softprompt_nb.studies.translation import Study, StudyRun, translation_study
from softprompt_nb.translation.translator.translator import Translator, TranslatorConfig
from softprompt_nb.translation.readings.verbalize import logit_lens, nearest_tokens, prompt_states

__all__ = [n for n in dir() if not n.startswith("_") and n not in ("softprompt_nb",)]
