"""Interface of an objective: what a network learns from a batch, and how it acts.

`Update` owns epochs, minibatches, the optimizer and the guard against values that are not finite. Everything that
depends on the algorithm is an `Objective`: the network with the distribution of its actions, what is computed once per
update, and the loss of a minibatch.

Legend: T steps, B lanes of the batch, b lanes of a minibatch. Where minibatches hold rows, T is 1 and B all rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.learning.batch import Batch, BatchLanes
from sfactory.learning.distributed import Joint
from sfactory.learning.native_network import NativeLearnerNetwork
from sfactory.learning.normalizers import Normalizers
from sfactory.learning.parallel_network import Inputs
from sfactory.learning.parts import divided, joined
from sfactory.model.actor_critic import ActorCritic, Output
from sfactory.model.encoders import check_encoders

KL_METRIC = "offpolicy/kl_of_update"
"""Metric that the learning-rate schedule kl_adaptive reads: `Objective.kl_of_update`."""
ESS_METRIC = "offpolicy/ess"
"""Metric that the learning-rate schedule ess reads; an objective that supports it reports it."""


class Start(Protocol):
    """What an objective computes once per update; a NamedTuple in practice."""

    def as_rows(self) -> Any:
        """The same with every [T, B] tensor as [1, T x B], see `Batch.as_rows`."""


S = TypeVar("S", bound=Start)


class Minibatch(NamedTuple):
    """The rows of one optimizer step, or a part of them, and the network's outputs for them."""

    batch: Batch | BatchLanes  # [T, b]
    lanes: Tensor | None  # [b] int64, lanes of the update's batch; None: all of them
    out: Output  # [T, b], with gradient
    num_valid: Tensor | None = None
    """[] valid rows of the whole minibatch if this is a part of one, see `Objective.divisible`; None: it is whole."""


class Loss(NamedTuple):
    """Loss of a minibatch and its metrics, under their final names."""

    total: Tensor | None
    """[] the loss to differentiate; None if its gradient is given and it is not reported."""
    losses: dict[str, Tensor]
    """Metric name -> [] detached: the terms of the loss. Empty unless reported."""
    diagnostics: dict[str, Tensor]
    """Metric name -> [] detached: everything else. Empty unless reported."""
    gradient: tuple[Tensor, Tensor] | None = None
    """Derivative of the total with respect to the network's outputs, params [T, b, K] and value [T, b]; None: autograd
    computes it from the total."""
    joint: Mapping[str, Joint] = {}
    """Metric name -> how several learners compute those of the metrics that are no mean over the minibatch's rows."""


LossFunction = Callable[[Minibatch, Any, bool], Loss]


class Phase(NamedTuple):
    """Epochs of minibatches over one batch with one loss."""

    batch: Batch
    start: Any
    """Passed to the loss unchanged."""
    loss: LossFunction
    order: Tensor | None
    """[epochs, lanes] int64, the lanes of every epoch; None: one minibatch is the whole batch."""
    epochs: int
    minibatches: int
    divisible: bool = False
    """As `Objective.divisible`, for this loss."""


class Objective(ABC, Generic[S]):
    """What is learned from a batch by one network.

    `start` and `loss` run inside updates that may be recorded (CUDA graphs): they never wait for the device, and state
    is changed in place only. An objective that cannot do so sets `recordable` to False.
    """

    largest_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics whose largest value since the last row is logged; of all others the mean."""

    divisible: bool = False
    """Whether `loss` divides by `Minibatch.num_valid` where that is given, so that the losses of the parts of a
    minibatch add up to its loss. If so, a GPU trains a large minibatch part by part, which limits the memory it needs;
    metrics are reported for whole minibatches only. If not, activations of all its rows are kept at the same time."""

    def __init__(
        self,
        config: Config,
        model: ActorCritic,
        normalizers: Normalizers,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Raises ValueError if settings do not fit together, or the network cannot be trained as it acts."""
        check_encoders(config.model.reader, model, config.model.own_code[0] or "model.encoder")
        self.config, self.model, self.normalizers, self.autocast = config, model, normalizers, autocast
        self.native_network: NativeLearnerNetwork | None = None
        self.outputs: Callable[[Inputs], Output] | None = None

    def use_network(self, outputs: Callable[[Inputs], Output]) -> None:
        """Called before the first update. outputs: of rows [T, B] under the present weights, without gradient."""
        self.outputs = outputs

    def use_native(self, network: NativeLearnerNetwork) -> None:
        """Called before the first update if the native kernels compute the network; `evaluate` uses them too."""
        self.native_network = network

    def warnings(self) -> Sequence[str]:
        """Lines for the log about settings that have no effect; read once, when the learner starts."""
        return ()

    # -- the network, built by every process that holds one -----------------------------------------------------------

    @classmethod
    @abstractmethod
    def build_model(cls, config: Config, spec: EnvSpec) -> ActorCritic:
        """The network for an environment, its weights drawn from torch's global generator.

        How it acts is a matter of its `distribution` alone: inference, evaluations and exported files all read that.
        """

    # -- one update --------------------------------------------------------------------------------------------------

    @property
    def recordable(self) -> bool:
        """Whether every update runs the same operations on tensors that stay where they are."""
        return True

    def set_progress(self, progress: float) -> None:
        """Called before every update with the share of the run that is over, 0 to 1; never part of a recording.

        Also called with 0 when the weights were taken from another run. May change buffers of the network, which are
        published with the weights.
        """

    @abstractmethod
    def start(self, batch: Batch, out: Output) -> S:
        """Compute targets and everything else that is computed once per update, without gradient.

        batch: [T, B]. out: outputs of the T + 1 rows under the weights before the first optimizer step. May rescale the
        value head (`Normalizers.add_targets`); everything else of the network stays as it is.
        """

    def begin_epochs(self, start: S) -> None:
        """Called once per update before the first optimizer step; start has the shape minibatches are cut from."""

    @abstractmethod
    def loss(self, part: Minibatch, start: S, report: bool) -> Loss:
        """Loss of a minibatch. Changes nothing that a loss reads. report: also compute the metrics."""

    def after_step(self, skipped: Tensor) -> None:
        """Called after every optimizer step. skipped: [] 1.0 if it was not taken and the weights are as before."""

    def kl_of_update(self, batch: Batch, start: S, out: Output) -> Tensor:
        """[] KL of the policy at the start of the update to the present one, in nats: mean over the valid rows.

        out: outputs of the T rows under the present weights. Called with the learning-rate schedule kl_adaptive only.
        Without an implementation that schedule is refused.
        """
        raise NotImplementedError(f"{type(self).__name__} has no distance between policies")

    def entropy_at_start(self, batch: Batch, start: S) -> Tensor:
        """[] mean entropy of the policy before the first optimizer step, over the valid rows.

        Called with `optim.sfpo_steps` only, which is refused for an objective that does not override this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no entropy of a policy")

    def further_phases(self, batch: Batch) -> Iterable[Phase]:
        """Phases that follow the epochs of this update, for example an auxiliary phase every few updates.

        A generator goes on after its phase was run. Metrics of a phase need names of their own.
        """
        return ()

    def row(self) -> Mapping[str, float]:
        """Metrics of the objective itself, which no batch is needed for."""
        return {}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """State of the objective besides the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state. The settings may have changed since: unknown state is ignored."""

    def reset(self) -> None:
        """Called when the weights were replaced."""

    def cycle_state(self) -> dict[str, Any]:
        """What an exact resume also needs, where several updates form a cycle: numbers and arrays.

        Other resumes begin a cycle. It may be large, and each of several learners has its own.
        """
        return {}

    def load_cycle_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `cycle_state` returned; {} from a version that did not save it."""

    # -- helpers -----------------------------------------------------------------------------------------------------

    def evaluate(self, weights: Mapping[str, Tensor], part: Minibatch) -> Output:
        """Outputs of the network with other weights (name -> tensor), params and value [T, b], without gradient."""
        batch = part.batch
        parameters = [name for name, _ in self.model.named_parameters()]
        if self.native_network is not None and weights.keys() == set(parameters):  # else they have buffers of their own
            has_last_row = isinstance(batch, Batch) and len(batch.first) > len(batch.valid)
            rows = batch.without_last_row() if has_last_row else batch
            return self.native_network.evaluate([weights[name] for name in parameters], rows)
        steps = batch.valid.shape[0]
        named = {f"model.{name}": tensor for name, tensor in weights.items()}

        def unroll(rows: Batch | BatchLanes) -> Output:
            obs, first = {name: leaf[:steps] for name, leaf in rows.obs.items()}, rows.first[:steps]
            with torch.no_grad(), self.autocast():
                out: Output = torch.func.functional_call(_Unroll(self.model), named, (obs, first, rows.state))
            return out

        whole = batch.whole if isinstance(batch, BatchLanes) else batch
        parts = divided(batch)
        return joined([unroll(whole.lanes(lanes)) for lanes in parts]) if parts else unroll(batch)


def network_arguments(config: Config, spec: EnvSpec) -> dict[str, Any]:
    """Arguments of `ActorCritic` that all of its kinds have: what is read, and the layers before the heads."""
    settings = config.model
    return {
        "obs": spec.obs,
        "actions": spec.actions,
        "encoder": settings.encoder,
        "hidden": settings.hidden,
        "activation": settings.activation,
        "layer_norm": settings.layer_norm,
        "pooling": settings.pooling,
        "core": settings.core,
        "core_size": settings.core_size,
        "normalize_obs": config.normalize.obs,
        "mask": spec.mask,
        "acting": spec.acting,
    }


class _Unroll(torch.nn.Module):
    """`model.unroll` as a forward pass, so that `functional_call` can run it with other weights."""

    def __init__(self, model: ActorCritic) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: dict[str, Tensor], first: Tensor, state: Tensor | None) -> Output:
        return self.model.unroll(obs, first, state)
