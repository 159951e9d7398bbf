"""How a policy is improved on a rollout."""

from eqxrl._devices import mean_over_devices as mean_over_devices
from eqxrl.learners._adaptive_kl import AdaptiveKL as AdaptiveKL
from eqxrl.learners._base import AbstractLearner as AbstractLearner
from eqxrl.learners._base import LearnerState as LearnerState
from eqxrl.learners._base import cut as cut
from eqxrl.learners._base import flatten as flatten
from eqxrl.learners._base import gradient_update as gradient_update
from eqxrl.learners._base import init_learner_state as init_learner_state
from eqxrl.learners._by_network import by_network as by_network
from eqxrl.learners._clipped import clipped as clipped
from eqxrl.learners._clipped import grad_norm as grad_norm
from eqxrl.learners._data_parallel import DataParallelLearner as DataParallelLearner
from eqxrl.learners._minibatch import MinibatchLearner as MinibatchLearner
from eqxrl.learners._permutation import swap_or_not as swap_or_not
from eqxrl.learners._target_updates import AbstractTargetUpdate as AbstractTargetUpdate
from eqxrl.learners._target_updates import NoTarget as NoTarget
from eqxrl.learners._target_updates import Periodic as Periodic
from eqxrl.learners._target_updates import Polyak as Polyak
