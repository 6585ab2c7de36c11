"""Small trainable modules between a student's features and a teacher's."""

from jaxkd.connectors.projector import Projector, projector_for
from jaxkd.connectors.regressor import Regressor, regressor_for

__all__ = ["Projector", "Regressor", "projector_for", "regressor_for"]
