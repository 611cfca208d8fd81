"""Actor-critic network: encoders, a recurrent core, policy and value heads.

Legend: N samples, T steps, B lanes, K distribution parameters, H width of the recurrent state (0: none), M bins of the
value, P size of the flat weights. Observations are a dict of leaves [N, *shape] or [T, B, *shape].
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfactory.model.cores import CORES, Core
from sfactory.model.distributions import MASKED_LOGIT, ActionDistribution, ActionLeafLike, at_least_single
from sfactory.model.encoders import make_encoder, orthogonal
from sfactory.model.histogram_head import HistogramHead, ValueBins
from sfactory.model.inputs import CLIP, Input
from sfactory.model.treatment import ObsLeaf, Scaling, Treatment, treatments


class Output(NamedTuple):
    """Result of a forward pass."""

    params: Tensor
    """[N, K] or [T, B, K] float32, parameters of the action distribution."""
    value: Tensor
    """[N] or [T, B] float32."""
    state: Tensor | None
    """[N, H] or [B, H], the recurrent state after the (last) step; the input state if H = 0."""
    median: Tensor | None = None
    """[N] or [T, B] float32, output of the median head; None if the network has none."""
    value_logits: Tensor | None = None
    """[N, M] or [T, B, M] float32, logits of the bins whose expectation is the value; None without bins."""

    def of_rows(self) -> dict[str, Tensor]:
        """The outputs that belong to a row, by name: those that there are, without the recurrent state."""
        return {name: x for name, x in self._asdict().items() if name != "state" and x is not None}


class Trunk(nn.Module):
    """One encoder per leaf, concatenated features, then the core."""

    def __init__(
        self,
        obs: Mapping[str, Treatment],
        *,
        core: str,
        core_size: int,
        **layers: Any,
    ) -> None:
        """layers: `hidden`, `activation` and other arguments of `make_encoder`."""
        super().__init__()
        self.names = list(obs)
        encoders = [make_encoder(leaf.encoder, leaf.encoder_shape, **layers) for leaf in obs.values()]
        self.encoders = nn.ModuleList(encoders)
        features = sum(module.out_size for module in encoders)
        self.core: Core = CORES[core](features, core_size)
        self.out_size = self.core.out_size

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Leaves as the encoders read them, [N, ...] -> [N, F]."""
        features = [encoder(obs[name]) for name, encoder in zip(self.names, self.encoders, strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, -1)


class ActorCritic(nn.Module):
    """Policy and value network; the same module is used for inference and for training.

    Args:
        obs: leaves with ``shape``, ``dtype`` and, if they have any, bounds ``low`` and ``high``.
        actions: leaves as in `distributions.ActionLeafLike`.
        encoder: a name in `encoders.ENCODERS`, "auto" or "module:Class".
        hidden: widths of the encoder's fully connected layers.
        core: none, gru or lstm.
        core_size: width of the core.
        activation: relu or tanh.
        layer_norm: LayerNorm before each activation of the encoders.
        pooling: none, or average after the last convolution (encoder impala).
        separate: use a separate trunk for the critic (small control tasks); not together with a core.
        normalize_obs: standardise numbers inside the module, but those of pictures with bounds; the statistics are
            buffers. See `treatment`.
        log_std_init: initial log standard deviation of box actions, a parameter independent of the observation.
        squash: apply tanh to box actions (see `distributions`).
        mask: name of the observation leaf with the action mask [N, logits], "" if there is none; no encoder gets it.
        acting: name of the leaf [N] bool, False where the agent does not act now: there the recurrent state is kept,
            and the action has no effect. "" if every row acts; no encoder gets it.
        median: add a head beside the value head, for the median of the action values (surrogate.objective bpo).
        value_bins: the value is the expectation over these bins (model.value-head hl_gauss); None: one number.

    Raises:
        ValueError: unknown core, ``separate`` with a core, or a leaf that cannot be read (`treatment.treat`).
    """

    def __init__(
        self,
        obs: Mapping[str, ObsLeaf],
        actions: Mapping[str, ActionLeafLike],
        *,
        encoder: str = "auto",
        hidden: Sequence[int] = (128,),
        core: str = "none",
        core_size: int = 0,
        activation: str = "relu",
        layer_norm: bool = False,
        pooling: str = "none",
        separate: bool = False,
        normalize_obs: bool = False,
        log_std_init: float = 0.0,
        squash: bool = False,
        mask: str = "",
        acting: str = "",
        median: bool = False,
        value_bins: ValueBins | None = None,
    ) -> None:
        super().__init__()
        if core not in CORES:
            raise ValueError(f"model.core is {core!r}, expected one of {', '.join(CORES)}")
        if separate and core != "none":
            raise ValueError(
                f"model.separate and model.core={core} exclude each other: the core needs one shared trunk"
            )
        self.distribution = self._distribution(actions, squash)
        self.mask, self.acting = mask, acting
        self.treatments = treatments(obs, without=(mask, acting), encoder=encoder, normalize=normalize_obs)
        self.action_dtypes = {name: str(leaf.dtype) for name, leaf in actions.items()}
        shared: dict[str, Any] = dict(hidden=hidden, activation=activation, layer_norm=layer_norm, pooling=pooling)
        self.trunk = self._trunk(**shared, core=core, core_size=core_size)
        self.critic = Trunk(self.treatments, **shared, core="none", core_size=0) if separate else None
        self.state_size = self.trunk.core.state_size
        self.value_bins = value_bins
        self._add_heads(log_std_init, median)

        self.normalized = [n for n, leaf in self.treatments.items() if leaf.scaling is Scaling.NORMALIZED]
        for name in self.normalized:
            shape = self.treatments[name].shape
            self.register_buffer(_buffer("obs_mean", name), torch.zeros(shape))
            self.register_buffer(_buffer("obs_inv_std", name), torch.ones(shape))
        inputs = [Input(leaf) for leaf in self.treatments.values()]
        self.inputs = nn.ModuleList(inputs)
        self._changed = [(name, i) for i, name in enumerate(self.treatments) if not inputs[i].identity]

    def _trunk(self, **arguments: Any) -> Trunk:
        """What computes the features of the policy."""
        return Trunk(self.treatments, **arguments)

    def _distribution(self, actions: Mapping[str, ActionLeafLike], squash: bool) -> ActionDistribution:
        """The distribution whose parameters the network computes."""
        return ActionDistribution(actions, squash)

    def _add_heads(self, log_std_init: float, median: bool) -> None:
        """Create what computes the outputs from the features of the trunks."""
        parts = self.distribution.parts
        outputs = sum(sum(part.sizes) for part in parts)  # logits, and means but not log_stds
        dimensions = sum(part.sizes[0] for part in parts if not part.discrete)
        # Nearly uniform initial policy; more important than most settings (Andrychowicz et al. 2021).
        self.policy_head = orthogonal(nn.Linear(self.trunk.out_size, outputs), 0.01)
        critic_size = (self.critic or self.trunk).out_size
        self.value_head = self._value_head(critic_size)
        self.median_head = orthogonal(nn.Linear(critic_size, 1), 1.0) if median else None
        self.log_std = nn.Parameter(torch.full((dimensions,), log_std_init)) if dimensions else None

    def _value_head(self, features: int) -> nn.Module:
        """What computes the value, or the logits of its bins, from the features of the critic."""
        if self.value_bins is None:
            return orthogonal(nn.Linear(features, 1), 1.0)
        return HistogramHead(features, self.value_bins)

    def forward(self, obs: Mapping[str, Tensor], state: Tensor | None = None, first: Tensor | None = None) -> Output:
        """Run one step. obs [N, *shape] leaves, state [N, H] or None (zeros), first [N] bool or None (all False)."""
        obs = self._read(obs)
        x = self.trunk.encode(obs)
        if self.state_size:
            state = self.trunk.core.initial_state(x.shape[0]) if state is None else state
            x, state = self.trunk.core(x, state, first, obs.get(self.acting))
            state = at_least_single(state)
        return self._heads(x, obs)._replace(state=state)

    def unroll(self, obs: Mapping[str, Tensor], first: Tensor, state: Tensor | None = None) -> Output:
        """Run a whole trajectory.

        obs [T, B, *shape] leaves, first [T, B] bool, state [B, H] before row 0 or None (zeros).
        """
        steps, lanes = first.shape
        obs = self._read({name: leaf.flatten(0, 1) for name, leaf in obs.items()})
        x = self.trunk.encode(obs)
        if self.state_size:
            state = self.trunk.core.initial_state(lanes) if state is None else state
            acting = obs[self.acting].view(steps, lanes) if self.acting else None
            x, state = self.trunk.core.unroll(x.view(steps, lanes, -1), state, first, acting)
            x, state = x.flatten(0, 1), at_least_single(state)
        rows = self._heads(x, obs).of_rows()
        return Output(**{name: x.view(steps, lanes, *x.shape[1:]) for name, x in rows.items()}, state=state)

    def normalized_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the standardised leaves, by name."""
        return {name: tuple(self.get_buffer(_buffer("obs_mean", name)).shape) for name in self.normalized}

    def normalizer(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation [*shape] of a standardised leaf: the buffers themselves."""
        return self.get_buffer(_buffer("obs_mean", name)), self.get_buffer(_buffer("obs_inv_std", name))

    def set_normalizer(self, name: str, mean: Tensor, var: Tensor) -> None:
        """Set the statistics [*shape] of leaf ``name``: buffers, published with the weights."""
        self.get_buffer(_buffer("obs_mean", name)).copy_(mean)
        self.get_buffer(_buffer("obs_inv_std", name)).copy_((var.double() + 1e-8).rsqrt())

    @torch.no_grad()
    def rescale_value(self, factor: Tensor, shift: Tensor) -> None:
        """Replace the outputs of all value heads by factor * output + shift; both []. Not for a value with bins."""
        assert self.value_bins is None, "bins of a network in training do not move"
        for head in self._value_heads():
            weight, bias = head.parameters()
            weight.mul_(factor)
            bias.mul_(factor).add_(shift)

    def rescale_finished_value(self, factor: float, shift: float) -> None:
        """As `rescale_value`, for a network that is not trained any more; bins move."""
        if self.value_bins is None:
            self.rescale_value(torch.tensor(factor), torch.tensor(shift))
        else:
            self.bins_head.move_bins(factor, shift)

    @property
    def bins_head(self) -> HistogramHead:
        """The value head of a network with bins."""
        assert isinstance(self.value_head, HistogramHead)
        return self.value_head

    def _value_heads(self) -> list[nn.Module]:
        """Heads whose outputs have the units of the value target."""
        return [head for head in (self.value_head, self.median_head) if head is not None]

    def flat_size(self) -> int:
        """P: number of float32 values in parameters and buffers."""
        return sum(x.numel() for x in self._weights())

    @torch.no_grad()
    def write_flat(self, out: Tensor) -> None:
        """Write parameters, then buffers, in order of definition, to out [P] float32 on any device."""
        weights = [x.reshape(-1) for x in self._weights()]
        if out.device == weights[0].device:
            torch.cat(weights, out=out)
        else:  # one transfer instead of one per tensor
            out.copy_(torch.cat(weights))

    @torch.no_grad()
    def read_flat(self, src: Tensor) -> None:
        """Read parameters and buffers from src [P] float32 on any device; asynchronous if src is pinned."""
        weights = self._weights()
        src = src.to(weights[0].device, non_blocking=True)
        parts = src.split([x.numel() for x in weights])
        torch._foreach_copy_(weights, [part.view(x.shape) for part, x in zip(parts, weights, strict=True)])

    def _weights(self) -> list[Tensor]:
        constants = ("inputs.", "value_head.offsets")
        buffers = (buffer for name, buffer in self.named_buffers() if not name.startswith(constants))
        return [*(x.detach() for x in self.parameters()), *buffers]

    def _read(self, obs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Leaves [N, *shape] of the environment -> leaves as the encoders read them, and the mask."""
        read = dict(obs)
        for name in self.normalized:
            read[name] = self._standardize(name, read[name])
        for name, number in self._changed:
            read[name] = self.inputs[number](read[name])
        return read

    def _standardize(self, name: str, leaf: Tensor) -> Tensor:
        """[N, *shape] -> mean 0 and variance 1, clipped; of large integers before their last digits are lost."""
        mean, inv_std = self.normalizer(name)
        numbers = leaf.double() if leaf.dtype == torch.int64 else leaf.to(mean.dtype)
        return ((numbers - mean) * inv_std).clamp(-CLIP, CLIP).to(mean.dtype)

    def _heads(self, x: Tensor, obs: Mapping[str, Tensor]) -> Output:
        """x [N, F] -> outputs of N rows, no state; float32 even under autocast: ratios need the precision."""
        y = self._critic_features(x, obs)
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return self._of_features(x, y, obs)
        with torch.autocast(device, enabled=False):
            return self._of_features(x.float(), y.float(), obs)

    def _of_features(self, x: Tensor, y: Tensor, obs: Mapping[str, Tensor]) -> Output:
        """Features of the policy x and of the critic y [N, F] -> outputs of N rows, no state."""
        params, value = self._outputs(x, y, obs)
        if self.value_bins is None:
            return Output(params, value, None, self._median(y))
        return Output(params, self.bins_head.expected(value), None, self._median(y), value)

    def _critic_features(self, x: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """What the value head reads [N, F]; x: features of the policy."""
        return x if self.critic is None else self.critic.encode(obs)

    def _outputs(self, x: Tensor, y: Tensor, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features of the policy x and of the critic y [N, F] -> params [N, K], value [N], or its logits [N, M]."""
        value = self.value_head(y)
        return self._params(self.policy_head(x), obs), value.squeeze(-1) if self.value_bins is None else value

    def _median(self, y: Tensor) -> Tensor | None:
        """[N, F] -> [N], None without a median head."""
        return None if self.median_head is None else self.median_head(y).squeeze(-1)

    def _params(self, raw: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """[N, logits and means] -> [N, K] in the order of `ActionDistribution`.

        Masked logits are replaced here, so that everything computed from the parameters, stored ones included, uses the
        same mask.
        """
        if self.mask:
            return torch.where(obs[self.mask] != 0, raw, MASKED_LOGIT)
        if self.log_std is None:
            return raw
        columns, used, dims = [], 0, 0
        for part in self.distribution.parts:
            width = sum(part.sizes)
            columns.append(raw[:, used : used + width])
            used += width
            if not part.discrete:
                columns.append(self.log_std[dims : dims + width].expand(raw.shape[0], -1))
                dims += width
        return torch.cat(columns, -1)


def _buffer(kind: str, name: str) -> str:
    """Name of a buffer; it must not contain a dot."""
    return f"{kind}_{name.replace('.', '__')}"
