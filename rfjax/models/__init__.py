"""Networks: parameters in, prediction out."""

from rfjax.models.backbone import Backbone, make_backbone, parameter_count, training_backbone

__all__ = ["Backbone", "make_backbone", "parameter_count", "training_backbone"]
