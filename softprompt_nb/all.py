"Everything that people type: `from softprompt_nb.all import *`."
from softprompt_nb.data import Batch, Example, collate, load_examples
from softprompt_nb.evaluation.structure import ShapeConfig, arms, compare_arms, shape_configs, solved_at
from softprompt_nb.lab.family import Truth, lab_model, lab_truth
from softprompt_nb.lab.forms import FORMS, question, read_reply
from softprompt_nb.lab.games import game_item, is_legal_next, legal_moves, read_game
from softprompt_nb.lab.grammar import GRAMMAR, composed, grammar
from softprompt_nb.lab.mazes import Maze, maze_item, read_maze, walk
from softprompt_nb.lab.planted import PLANTED
from softprompt_nb.lab.world import TASKS, lab_task, with_instruction, with_shots
from softprompt_nb.lm import FrozenLM, lab_models, load_lm
from softprompt_nb.measure import Measured, mean, over_runs, proportion
from softprompt_nb.plots import COLORS, plot_histories, plot_history, plot_runs, plot_shares, plot_vectors
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.tda.evolution import Evolution, evolution, rank_correlation, shape_at_end
from softprompt_nb.tda.penalties import L2, Connectivity, PairDistance, RandomDirection, Signature, TotalPersistence, Weighted
from softprompt_nb.tda.persistence import Diagram, Diagrams, persistence
from softprompt_nb.tda.summaries import against_null, betti_curve, diagram_distance, distance_against_null, landscape, persistence_entropy, summarize, total_persistence
from softprompt_nb.tda.tsloss import TSLoss, distinct
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog, Progress, Track
from softprompt_nb.training.configs import TuneConfig
from softprompt_nb.training.forward import assemble, prompted_loss, prompted_losses, target_logits
from softprompt_nb.training.inference import exact_match, generate, loss_on, score_options, to_prompt_embeds
from softprompt_nb.training.many import Runs, tune_many
from softprompt_nb.training.runs import Record, Result, RunStore, content_hash
from softprompt_nb.training.sweep import Serial, Sweep, sweep
from softprompt_nb.training.tuning import Run, Settings, TuningDiverged, tune
from softprompt_nb.translation.verbalize import nearest_tokens

__all__ = [n for n in dir() if not n.startswith("_") and n not in ("softprompt_nb",)]
