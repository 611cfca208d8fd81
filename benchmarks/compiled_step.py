"""Time of one optimizer step: autograd, torch.compile of the whole step, the closed form, the native kernels.

    python benchmarks/compiled_step.py [TARGET ...] [--rounds 7]

The step is that of a preset: forward pass, decoupled PPO loss, gradient, clipping, Adam, on random rows in memory. One
thread; the variants take turns within a round, and the table has medians. `torch.compile` needs up to a minute of
compilation, which is printed and not counted in the steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sfactory.algo.loss import total_loss
from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import SurrogateInput
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.config import Config, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.device.machine import processor
from sfactory.envs import EnvSpec, make_spec
from sfactory.learning.batch import Batch
from sfactory.learning.network import build_model
from sfactory.learning.objectives import Minibatch
from sfactory.learning.update import Update
from sfactory.model.linear import Linear

TARGETS = ("minatar/breakout", "mujoco/hopper", "classic/cartpole", "atari/pong")
STEPS = 10  # of a variant before the next one has its turn


def random_batch(config: Config, spec: EnvSpec, update: Update, rows: int) -> Batch:
    """`rows` rows as one lane each, with one more observation."""
    draw = torch.Generator().manual_seed(1)
    obs = {}
    for name, leaf in spec.obs.items():
        numbers = torch.rand(2, rows, *leaf.shape, generator=draw)
        obs[name] = {"bool": numbers < 0.08, "uint8": (numbers * 255).byte()}.get(str(leaf.dtype), numbers - 0.5)
    distribution = update.model.distribution
    params = torch.randn(1, rows, distribution.num_params, generator=draw) / 4
    action = distribution.sample(params, torch.rand(1, rows, distribution.num_noise, generator=draw))
    zeros = torch.zeros(1, rows)
    return Batch(
        obs=obs, first=torch.zeros(2, rows).bool(), action=action, log_prob=distribution.log_prob(params, action),
        params=params, reward=torch.randn(1, rows, generator=draw), terminated=zeros.bool(), truncated=zeros.bool(),
        valid=~zeros.bool(), lag=zeros, state=None, discounted_return=zeros if config.normalize.reward else None,
    )  # fmt: skip


def step_of_update(config: Config, spec: EnvSpec, kernels: str, rows: int) -> Callable[[], object]:
    """An optimizer step as the learner takes it."""
    torch.manual_seed(0)
    chosen = {"run.kernels": kernels, "run.learner_threads": 1, "batch.epochs": 2, "batch.minibatches": 1}
    config = with_settings(config, {**chosen, "batch.slots": 0})
    update = Update(config, build_model(config, spec), torch.device("cpu"))
    batch = random_batch(config, spec, update, 2 * rows)
    with torch.no_grad():
        start = update.objective.start(batch, update.network.forward_eval(batch))
    start, inputs = start.as_rows(), batch.without_last_row().as_rows()
    update.objective.begin_epochs(start)
    index = torch.randperm(2 * rows, generator=torch.Generator().manual_seed(2))[:rows].contiguous()

    def step() -> object:
        lanes = inputs.lanes(index)
        out = update.network.forward_train(lanes)
        return update._optimizer_step(update.objective.loss(Minibatch(lanes, index, out), start, False), lanes.valid)

    return step


def compiled_step(config: Config, spec: EnvSpec, rows: int) -> Callable[[], object]:
    """The same step as one function for torch.compile, with functional gradients and a fused update of all weights."""
    torch.manual_seed(0)
    model = build_model(config, spec)
    for module in model.modules():  # functional gradients cannot pass through the autograd.Function of `Linear`
        if isinstance(module, Linear):
            module.__class__ = torch.nn.Linear
    update = Update(with_settings(config, {"run.kernels": "torch"}), build_model(config, spec), torch.device("cpu"))
    batch = random_batch(config, spec, update, rows)
    obs = {name: leaf[0].contiguous() for name, leaf in batch.obs.items()}
    weights = {name: x.detach().clone() for name, x in model.named_parameters()}
    moments = [{name: torch.zeros_like(x) for name, x in weights.items()} for _ in range(2)]
    count = torch.zeros(())
    surrogate, options = SURROGATES[config.surrogate.objective], Options.read(config.surrogate)
    columns = [batch.log_prob[0], torch.randn(rows), torch.ones(rows), torch.randn(rows), torch.randn(rows)]

    def loss(weights: dict[str, Tensor]) -> Tensor:
        behavior, advantage, weight, target, old = columns
        out = torch.func.functional_call(model, weights, (obs,))
        action = {name: leaf[0] for name, leaf in batch.action.items()}
        log_prob, entropy = model.distribution.log_prob_entropy(out.params, action)
        x = SurrogateInput(log_prob, behavior, behavior, advantage, weight, batch.valid[0])
        terms = total_loss(
            surrogate(x, behavior_weight=config.surrogate.behavior_weight, **options), out.value.float(), target,
            entropy, batch.valid[0], value_coef=config.loss.value_coef, entropy_coef=config.loss.entropy_coef,
            old_value=old, value_clip=config.loss.value_clip or None,
        )  # fmt: skip
        return terms.total

    def step() -> None:
        gradients = torch.func.grad(loss)(weights)
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        scale = torch.clamp(config.optim.max_grad_norm / (norm + 1e-6), max=1.0)
        count.add_(1.0)
        for name, x in weights.items():
            g, m, v = gradients[name] * scale, moments[0][name], moments[1][name]
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            bottom = (v / (1 - 0.999**count)).sqrt() + config.optim.eps
            x.sub_(config.optim.lr / (1 - 0.9**count) * m / bottom)

    found = torch.compile(step)
    began = time.perf_counter()
    found()
    print(f"  compiled in {time.perf_counter() - began:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}")
    for target in arguments.targets:
        config = with_settings(build(*target_layers(target)), {"run.precision": "fp32"})
        config = with_settings(config, {"sampling.num_samplers": config.sampling.num_samplers or 1})
        spec = make_spec(config.env.tasks[0], config.env.options)
        rows = config.batch_rows // config.batch.minibatches
        print(f"{target}, {rows} rows")
        variants = {"autograd": step_of_update(config, spec, "autograd", rows)}
        variants["torch.compile"] = compiled_step(config, spec, rows)
        variants["torch"] = step_of_update(config, spec, "torch", rows)
        variants["auto"] = step_of_update(config, spec, "auto", rows)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(arguments.rounds):
            for name, step in variants.items():
                step()
                began = time.thread_time()
                for _ in range(STEPS):
                    step()
                times[name].append((time.thread_time() - began) / STEPS)
        base = statistics.median(times["autograd"])
        for name, found in times.items():
            median = statistics.median(found)
            print(f"  {name:14} {1e3 * median:8.3f} ms   {base / median:5.2f}")


if __name__ == "__main__":
    main()
