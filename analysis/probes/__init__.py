"""What can be read off a model's activations: linear probes of one layer, of all, and of the features that matter.

Head2Toe (2201.03529) trains one linear head on the activations of all layers with a penalty that switches features off,
keeps the best, and trains a fresh head on them. Everything here is a function of arrays; no model is known.
"""

from analysis.probes.features import Features, collect, normalised, pool, segments_for
from analysis.probes.fitting import Head, Plan, group_lasso, largest_coefficient, relevance
from analysis.probes.head2toe import Probe, accuracy, head2toe, last_layer_probe, linear_probe, predict
from analysis.probes.many import predict_each
from analysis.probes.selection import LayerShare, kept_count, layer_shares, ranking_auc, select
from analysis.probes.validation import Choice, cross_validate

__all__ = [
    "Choice",
    "Features",
    "Head",
    "LayerShare",
    "Plan",
    "Probe",
    "accuracy",
    "collect",
    "cross_validate",
    "group_lasso",
    "head2toe",
    "kept_count",
    "largest_coefficient",
    "last_layer_probe",
    "layer_shares",
    "linear_probe",
    "normalised",
    "pool",
    "predict",
    "predict_each",
    "ranking_auc",
    "relevance",
    "segments_for",
    "select",
]
