"""What the package is held to, written out in NumPy and float64: loops and sums rather than scans, and derivatives by hand.
Nothing here imports the package."""

import math

import numpy as np

# Advantages


def gae_by_sum(reward, value, terminated, truncated, final_value, last_value, gamma, gae_lambda):
    """Schulman et al. 2016, eq. 16, as the double sum that it is: `[steps envs]` arrays in, advantages and targets out."""
    reward, value, final_value, last_value = (np.asarray(x, np.float64) for x in (reward, value, final_value, last_value))
    steps, envs = reward.shape
    advantages = np.zeros((steps, envs))
    for env in range(envs):
        delta = np.zeros(steps)
        for t in range(steps):
            if terminated[t, env]:
                following = 0.0
            elif truncated[t, env]:
                following = final_value[t, env]
            elif t + 1 < steps:
                following = value[t + 1, env]
            else:
                following = last_value[env]
            delta[t] = reward[t, env] + gamma * following - value[t, env]
        for t in range(steps):
            for later in range(t, steps):
                advantages[t, env] += (gamma * gae_lambda) ** (later - t) * delta[later]
                if terminated[later, env] or truncated[later, env]:
                    break
    return advantages, advantages + value


def segments(terminated, truncated):
    """`(env, first step, last step)` of every stretch of a rollout `[steps envs]` that belongs to one episode."""
    steps, envs = terminated.shape
    for env in range(envs):
        start = 0
        for t in range(steps):
            if terminated[t, env] or truncated[t, env] or t == steps - 1:
                yield env, start, t
                start = t + 1


# Losses


def standardise(x):
    x = np.asarray(x, np.float64)
    return (x - x.mean()) / (x.std() + 1e-8)


def value_loss(value, old_value, targets, clip_eps=None):
    """The loss and its gradient by `value`; `clip_eps=None`: not clipped."""
    value, old_value, targets = (np.asarray(x, np.float64) for x in (value, old_value, targets))
    plain = (value - targets) ** 2
    gradient = 2 * (value - targets)
    if clip_eps is not None:
        near = np.clip(value, old_value - clip_eps, old_value + clip_eps)
        inside = np.abs(value - old_value) < clip_eps
        clipped = (near - targets) ** 2
        gradient = np.where(inside | (plain > clipped), gradient, 0.0)
        plain = np.maximum(plain, clipped)
    return 0.5 * plain.mean(), 0.5 * gradient / plain.size


def policy_loss(log_prob, old_log_prob, advantages, clip_eps):
    """The loss and its gradient by `log_prob`; advantages as they are."""
    ratio = np.exp(log_prob - old_log_prob)
    plain, clipped = ratio * advantages, np.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantages
    gradient = np.where(plain <= clipped, plain, 0.0)  # the clipped branch is smaller only outside the range, where it is flat
    return -np.minimum(plain, clipped).mean(), -gradient / plain.size


# Networks: two separate tanh multilayer perceptrons, as lists of (weight [out in], bias [out])


def mlp_forward(layers, x):
    """`[batch in]` to `[batch out]`, and the inputs of each layer."""
    inputs = [x]
    for weight, bias in layers[:-1]:
        inputs.append(np.tanh(inputs[-1] @ weight.T + bias))
    weight, bias = layers[-1]
    return inputs[-1] @ weight.T + bias, inputs


def mlp_backward(layers, inputs, gradient):
    """Gradients by each layer's (weight, bias), from the one by the output `[batch out]`."""
    gradients = []
    for i in reversed(range(len(layers))):
        weight, _ = layers[i]
        gradients.append((gradient.T @ inputs[i], gradient.sum(0)))
        gradient = (gradient @ weight) * (1 - inputs[i] ** 2)
    return gradients[::-1]


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def ppo_gradient(params, batch, clip_eps, vf_coef, ent_coef):
    """The gradient of PPO's loss by `params`, a dict of `actor` and `critic` (layers) and, for a Gaussian policy, `log_std`;
    `batch` is a dict of `[batch ...]` arrays."""
    head, actor_inputs = mlp_forward(params["actor"], batch["obs"])
    value, critic_inputs = mlp_forward(params["critic"], batch["obs"])
    size = len(head)
    if "log_std" in params:
        std = np.exp(params["log_std"])
        z = (batch["action"] - head) / std
        log_prob = (-0.5 * z**2 - params["log_std"] - 0.5 * math.log(2 * math.pi)).sum(-1)
    else:
        log_p = log_softmax(head)
        p = np.exp(log_p)
        chosen = np.eye(head.shape[-1])[batch["action"]]
        log_prob = (log_p * chosen).sum(-1)
    _, by_log_prob = policy_loss(log_prob, batch["log_prob"], standardise(batch["advantages"]), clip_eps)
    _, by_value = value_loss(value[:, 0], batch["value"], batch["targets"], clip_eps)
    gradient = {"critic": mlp_backward(params["critic"], critic_inputs, vf_coef * by_value[:, None])}
    if "log_std" in params:
        by_head = by_log_prob[:, None] * z / std
        gradient["log_std"] = (by_log_prob[:, None] * (z**2 - 1)).sum(0) - ent_coef  # the entropy is sum(log_std) + constant
    else:
        entropy = -(p * log_p).sum(-1, keepdims=True)
        by_head = by_log_prob[:, None] * (chosen - p) + ent_coef / size * p * (log_p + entropy)
    gradient["actor"] = mlp_backward(params["actor"], actor_inputs, by_head)
    return gradient


def leaves(params):
    """The arrays of `params` in a fixed order; changing them in place changes `params`."""
    flat = [x for name in ("actor", "critic") for layer in params[name] for x in layer]
    return flat + ([params["log_std"]] if "log_std" in params else [])


def ppo_update(
    params, batch, orders, *, num_minibatches, learning_rate, max_grad_norm, clip_eps, vf_coef, ent_coef, adam_eps=1e-5
):
    """PPO's epochs over a flat batch, changing `params` in place. `orders` is `[epochs batch]`, the permutation of each epoch;
    `learning_rate` a function of the number of updates made."""
    first = [np.zeros_like(x) for x in leaves(params)]
    second = [np.zeros_like(x) for x in leaves(params)]
    updates = 0
    for order in orders:
        for indices in np.split(np.asarray(order), num_minibatches):
            minibatch = {name: x[indices] for name, x in batch.items()}
            gradient = leaves(ppo_gradient(params, minibatch, clip_eps, vf_coef, ent_coef))
            norm = math.sqrt(sum((g**2).sum() for g in gradient))
            scale = min(1.0, max_grad_norm / norm)
            rate = learning_rate(updates)
            updates += 1
            for x, m, v, g in zip(leaves(params), first, second, gradient, strict=True):
                m += 0.1 * (scale * g - m)
                v += 0.001 * ((scale * g) ** 2 - v)
                x -= rate * (m / (1 - 0.9**updates)) / (np.sqrt(v / (1 - 0.999**updates)) + adam_eps)


# Rewards


def scale_rewards(reward, done, gamma, *, clip=10.0, epsilon=1e-8):
    """The `VecNormalize` of OpenAI's baselines and of stable-baselines3, one step `[envs]` after another, all values of the
    running return kept: its deviation is taken anew at each step. **Returns:** scaled rewards `[steps envs]`."""
    reward = np.asarray(reward, np.float64)
    running, seen, scaled = np.zeros(reward.shape[1]), [], np.zeros_like(reward)
    for t in range(len(reward)):
        running = gamma * running + reward[t]
        seen.append(running.copy())
        scaled[t] = np.clip(reward[t] / np.sqrt(np.var(seen) + epsilon), -clip, clip)
        running[np.asarray(done[t])] = 0.0
    return scaled


# Episodes


def episodes(reward, done, running_return=None, running_length=None):
    """Returns and lengths of the episodes that end in a rollout `[steps envs]`, and those of the episodes left open."""
    envs = np.asarray(reward).shape[1]
    running_return = np.zeros(envs) if running_return is None else np.array(running_return, np.float64)
    running_length = np.zeros(envs, int) if running_length is None else np.array(running_length)
    ended = []
    for r, d in zip(np.asarray(reward, np.float64), np.asarray(done), strict=True):
        running_return += r
        running_length += 1
        for env in np.flatnonzero(d):
            ended.append((running_return[env], running_length[env]))
            running_return[env] = running_length[env] = 0
    return ended, running_return, running_length
