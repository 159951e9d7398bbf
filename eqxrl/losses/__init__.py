"""What a learner minimises: pure functions of a policy and a minibatch."""

from eqxrl.losses._actor_critic import ActorCriticLoss as ActorCriticLoss
from eqxrl.losses._base import AbstractLoss as AbstractLoss
from eqxrl.losses._pathwise import PathwiseLoss as PathwiseLoss
from eqxrl.losses._pathwise import TemperedActor as TemperedActor
from eqxrl.losses._ppo import PPOLoss as PPOLoss
from eqxrl.losses._q import QLoss as QLoss
from eqxrl.losses._reductions import AbstractReduction as AbstractReduction
from eqxrl.losses._reductions import HistogramMinimum as HistogramMinimum
from eqxrl.losses._reductions import Mean as Mean
from eqxrl.losses._reductions import Minimum as Minimum
from eqxrl.losses._reductions import TruncatedQuantiles as TruncatedQuantiles
from eqxrl.losses._soft_values import fixed as fixed
from eqxrl.losses._soft_values import values_chosen as values_chosen
from eqxrl.losses._soft_values import values_of_both as values_of_both
from eqxrl.losses._soft_values import values_taken as values_taken
from eqxrl.losses._td import quantile_huber as quantile_huber
from eqxrl.losses._td import td_loss as td_loss
from eqxrl.losses._td import td_target as td_target
from eqxrl.losses._vtrace import VTraceLoss as VTraceLoss
