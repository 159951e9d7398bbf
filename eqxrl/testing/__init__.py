"""Is a part of your own a good one? A check for each abstract part, for your own tests:

    from eqxrl.testing import check_advantage

    def test_mine():
        check_advantage(MyAdvantage(gamma=0.9))

Each raises an `AssertionError` that lists all that is wrong with the part, and what to look at. `eqxrl.verify` holds a whole
algorithm to the same laws.
"""

from eqxrl.envs import check_env as check_env
from eqxrl.testing._advantages import check_advantage as check_advantage
from eqxrl.testing._collectors import check_collector as check_collector
from eqxrl.testing._collectors import check_reset as check_reset
from eqxrl.testing._evaluators import check_evaluator as check_evaluator
from eqxrl.testing._learners import check_learner as check_learner
from eqxrl.testing._losses import check_loss as check_loss
from eqxrl.testing._nn import check_actor_critic as check_actor_critic
from eqxrl.testing._nn import check_distribution as check_distribution
