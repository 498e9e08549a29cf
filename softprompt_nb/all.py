"""What most pages use: `from softprompt_nb.all import *`. The rest is by wing: `from softprompt_nb import evaluation`."""

from softprompt_nb.conditional import ConditionalPrompt, SubspacePrompt
from softprompt_nb.data import Example, collate, load_examples
from softprompt_nb.engine.forward import prompted_loss, prompted_losses, target_logits
from softprompt_nb.engine.inference import exact_match, generate, loss_on, score_options, to_prompt_embeds
from softprompt_nb.engine.labels import label_accuracy
from softprompt_nb.evaluation.distance.capabilities import Capability, from_examples, repetition
from softprompt_nb.evaluation.distance.ladder import ladder, loss_by_vector
from softprompt_nb.evaluation.distance.measures import Ladder
from softprompt_nb.evaluation.formats.benchmarks import load_benchmark
from softprompt_nb.evaluation.formats.formats import Format, Item
from softprompt_nb.evaluation.formats.knowledge import format_and_knowledge
from softprompt_nb.evaluation.interpretability import faithfulness, scrutability
from softprompt_nb.experiments.configs import TuneConfig
from softprompt_nb.experiments.runs import RunStore, content_hash
from softprompt_nb.experiments.sweep import sweep
from softprompt_nb.lab.family import lab_truth
from softprompt_nb.lab.world import lab_task, with_instruction, with_shots
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import lab_models, load_lm
from softprompt_nb.measure import Measured, over_runs, proportion
from softprompt_nb.plots import COLORS, plot_history, plot_runs, plot_shares, plot_vectors
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.tda.evolution import evolution
from softprompt_nb.tda.penalties import Weighted
from softprompt_nb.tda.persistence import persistence
from softprompt_nb.tda.summaries import against_null
from softprompt_nb.tda.tsloss import TSLoss
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog, Progress, Track
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.step import Settings
from softprompt_nb.training.tuning import Run, TuningDiverged, tune
from softprompt_nb.translation.hard.gcg import gcg
from softprompt_nb.translation.hard.pez import pez
from softprompt_nb.translation.hard.rlprompt import rlprompt
from softprompt_nb.translation.readings.inspect import inspect_prompt
from softprompt_nb.translation.readings.verbalize import nearest_tokens
from softprompt_nb.translation.translator.train_prompts import train_prompts
from softprompt_nb.translation.translator.translator import Translator

__all__ = [n for n in dir() if not n.startswith("_") and n not in ("softprompt_nb",)]
