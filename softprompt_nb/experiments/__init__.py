"""Configurations, their runs and records, and sweeps over any executor."""

# Written by `make export` from what the modules define; a module is loaded when a name of it is first asked for.
from importlib import import_module

_HOME = {
    "Record": "runs",
    "Result": "runs",
    "RunStore": "runs",
    "Serial": "sweep",
    "StoreError": "runs",
    "Sweep": "sweep",
    "TuneConfig": "configs",
    "Work": "runs",
    "attempt": "runs",
    "classes_in": "runs",
    "content_hash": "runs",
    "each_once": "runs",
    "files_in": "runs",
    "models_in": "runs",
    "plain_config": "runs",
    "split_examples": "configs",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
