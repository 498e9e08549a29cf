"""The persistent homology of a cloud of points, and losses on it."""

# Written by `make export` from what the modules define; a module is loaded when a name of it is first asked for.
from importlib import import_module

_HOME = {
    "Against": "summaries",
    "Connectivity": "penalties",
    "Diagram": "persistence",
    "Diagrams": "persistence",
    "Evolution": "evolution",
    "L2": "penalties",
    "PairDistance": "penalties",
    "RandomDirection": "penalties",
    "Signature": "penalties",
    "TSLoss": "tsloss",
    "TotalPersistence": "penalties",
    "Weighted": "penalties",
    "against_null": "summaries",
    "beside_null": "summaries",
    "betti_curve": "summaries",
    "diagram_distance": "summaries",
    "distance_against_null": "summaries",
    "distances": "persistence",
    "distinct": "tsloss",
    "gaussian_clouds": "summaries",
    "gradient_length": "tsloss",
    "image": "summaries",
    "interval": "tsloss",
    "landscape": "summaries",
    "persistence_entropy": "summaries",
    "plot_against": "pictures",
    "plot_barcode": "pictures",
    "plot_diagrams": "pictures",
    "plot_evolution": "pictures",
    "plot_film": "pictures",
    "random_walks": "evolution",
    "rank_correlation": "evolution",
    "shape_at_end": "evolution",
    "soft_nearest": "tsloss",
    "square": "tsloss",
    "summarize": "summaries",
    "total_persistence": "summaries",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
