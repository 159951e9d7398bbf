import os

_FLAGS = {
    # Dots and reductions that jaxlib 0.10.2 and 0.11.0 hand to YNNPACK can hang for good, with every thread asleep
    # (https://github.com/jax-ml/jax/issues/39257), and are slower for networks as small as a policy's.
    "--xla_cpu_experimental_ynn_fusion_type": "",
    # The runtime's own thread pool has been seen to do the same on vmapped programs
    # (https://github.com/PyAutoLabs/PyAutoFit/issues/1530).
    "--xla_cpu_multi_thread_eigen": "false",
}


def set_cpu_flags() -> None:
    """Adds to `XLA_FLAGS` what keeps XLA's CPU runtime from hanging, except flags that are set there already. It takes effect if
    no JAX computation has run yet; other backends ignore it. The `eqxrl` command, the tests and the benchmarks call it; so
    should a script that trains on CPU, first of all."""
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in _FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])
