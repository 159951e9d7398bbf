"""Is a part of your own a good one? A check for each abstract part, for your own tests:

    from eqxrl.testing import check_advantage
    def test_mine():
        check_advantage(MyAdvantage(gamma=0.9))

Each raises an `AssertionError` that lists all that is wrong. `eqxrl.verify` holds the parts of a whole algorithm to the same laws; one
that a part breaks on purpose is declared in its class, `deviates = {"cut at episode ends": "lets credit flow across lives"}`.
"""

from eqxrl.envs import check_env as check_env
from eqxrl.testing._checks import check_actor_critic as check_actor_critic
from eqxrl.testing._checks import check_advantage as check_advantage
from eqxrl.testing._checks import check_buffer as check_buffer
from eqxrl.testing._checks import check_collector as check_collector
from eqxrl.testing._checks import check_distribution as check_distribution
from eqxrl.testing._checks import check_evaluator as check_evaluator
from eqxrl.testing._checks import check_learner as check_learner
from eqxrl.testing._checks import check_loss as check_loss
from eqxrl.testing._checks import check_stepper as check_stepper
