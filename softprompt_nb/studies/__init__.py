"""What runs a whole paper and stores its results."""

# Written by `make export` from what the modules define; a module is loaded when a name of it is first asked for.
from importlib import import_module

_HOME = {
    "Calibration": "calibration",
    "Case": "distance",
    "ClassifyConfig": "classification",
    "DistanceStudy": "distance",
    "FormatConfig": "format",
    "FormatStudy": "format",
    "HardConfig": "readable",
    "ShapeConfig": "structure",
    "Split": "classification",
    "Study": "translation",
    "StudyRun": "translation",
    "TextSet": "classification",
    "accuracy_table": "classification",
    "arms": "structure",
    "behaviour": "calibration",
    "by_lambda": "readable",
    "calibrate": "calibration",
    "changes": "readable",
    "chosen": "classification",
    "classify_configs": "classification",
    "compare_arms": "structure",
    "distance_study": "distance",
    "draw": "classification",
    "frequency_models": "calibration",
    "gpt2_configs": "readable",
    "hard_configs": "readable",
    "hard_table": "readable",
    "hypervolumes": "readable",
    "lab_cases": "distance",
    "lab_study": "structure",
    "named_benchmark": "format",
    "not_in_table": "classification",
    "oddities": "readable",
    "paired_gain": "classification",
    "paper_capabilities": "published",
    "paper_claims": "structure",
    "paper_configs": "format",
    "paper_ladder": "published",
    "paper_study": "structure",
    "plot_desiderata": "readable",
    "plot_trade": "readable",
    "prompt_claims": "readable",
    "prompt_features": "translation",
    "read_mean": "calibration",
    "readings": "distance",
    "results": "structure",
    "run_classification": "classification",
    "saturation_table": "published",
    "seed_agreement": "distance",
    "shape_configs": "structure",
    "small_normal": "published",
    "solved_at": "structure",
    "solves": "structure",
    "study": "structure",
    "study_configs": "format",
    "tenfold": "readable",
    "tiny": "distance",
    "told_apart": "calibration",
    "translation_study": "translation",
    "tune_configs": "classification",
    "with_chosen_rates": "classification",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
