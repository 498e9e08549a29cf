"""Tuning one prompt, or hundreds in one pass a step."""

# Written by `make export` from what the modules define; a module is loaded when a name of it is first asked for.
from importlib import import_module

_HOME = {
    "Callback": "callbacks",
    "EarlyStop": "callbacks",
    "JSONLLog": "callbacks",
    "Pool": "pool",
    "Progress": "callbacks",
    "Run": "tuning",
    "Runs": "many",
    "Settings": "step",
    "ShuffledBatches": "step",
    "Track": "callbacks",
    "Tuning": "step",
    "TuningDiverged": "tuning",
    "Watched": "callbacks",
    "belongs": "state",
    "clock": "callbacks",
    "data_fingerprint": "state",
    "free_memory": "many",
    "goes_on": "state",
    "in_notebook": "callbacks",
    "is_out_of_memory": "step",
    "kept_bytes": "many",
    "kept_for_backward": "many",
    "lanes_that_fit": "many",
    "load_state": "state",
    "losses_of": "step",
    "name_watchers": "state",
    "prepare": "step",
    "restore_watchers": "state",
    "result": "tuning",
    "run_pool": "pool",
    "save_state": "state",
    "spark": "callbacks",
    "step_together": "step",
    "summed_losses": "step",
    "tune": "tuning",
    "tune_many": "many",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
