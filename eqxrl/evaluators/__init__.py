"""How good a policy is, measured on whole episodes apart from training."""

from eqxrl.evaluators._base import AbstractEvaluator as AbstractEvaluator
from eqxrl.evaluators._episodes import EpisodeEvaluator as EpisodeEvaluator
