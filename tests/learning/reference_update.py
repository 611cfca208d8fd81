"""A slow update in float64, written from the papers alone: it imports nothing of sfactory.

Sums are written out by their definitions, in loops over steps and lanes, where sfactory uses recursions; averages are
computed from the whole history, where sfactory keeps running moments; the optimizer and the averaged policy likewise.
Only the gradient is torch's.

    traces      GAE 1506.02438 eq. 16 · V-trace 1802.01561 eq. 1 · leaky V-trace 2002.12928 · RBIS 2301.11321 eq. 9
                and with it Retrace, truncated importance sampling and Recursive Retrace
    surrogates  2110.00641 and openai/ppo-ewma `compute_losses` · dual clip 1912.09729 · the others at `surrogate`
    proximal    EWMA 2110.00641 · A-3PO 2512.06547
    HL-Gauss    2403.03950 eq. 4 and 5
    PopArt      1602.07714 alg. 1      Adam 1412.6980 alg. 1, Adam-Rel 2412.17113
    SFPO        2510.04072 and its code                           baseline 2602.17616, with the norm of 2602.07078
    LSTM, GRU as in torch's documentation

Legend: T steps, B lanes, K parameters of the distribution. Names of settings and parameters are those of the run.
"""

import math

import torch
from torch import Tensor

LIMIT = 20.0  # log of the largest ratio
MASKED = -1e9


class Policy:
    """Joint distribution: heads are ("discrete", leaf, place in the leaf, k) or ("box", leaf, 0, d), in order."""

    def __init__(self, heads, half_width=None):
        self.heads, self.half_width = heads, half_width  # half_width: of squashed boxes

    def split(self, params):
        found, used = [], 0
        for kind, _, _, size in self.heads:
            width = size if kind == "discrete" else 2 * size
            found.append(params[..., used : used + width])
            used += width
        return found

    def log_prob(self, params, action):
        total = 0.0
        for (kind, leaf, place, size), part in zip(self.heads, self.split(params), strict=True):
            taken = action[leaf].reshape(*params.shape[:-1], -1)
            if kind == "discrete":
                p = torch.exp(part - part.logsumexp(-1, keepdim=True))
                total = total + torch.log((p * torch.nn.functional.one_hot(taken[..., place], size)).sum(-1))
            else:
                mean, std = part[..., :size], part[..., size:].exp()
                total = total - (((taken - mean) / std) ** 2 / 2 + std.log() + math.log(2 * math.pi) / 2).sum(-1)
                if self.half_width:
                    total = total - (math.log(self.half_width) - 2 * torch.log(torch.cosh(taken))).sum(-1)
        return total

    def entropy(self, params):
        total = 0.0
        for (kind, _, _, size), part in zip(self.heads, self.split(params), strict=True):
            if kind == "discrete":
                log_p = part - part.logsumexp(-1, keepdim=True)  # finite for masked actions, whose probability is 0
                total = total - (log_p.exp() * log_p).sum(-1)
            else:
                total = total + 0.5 * torch.log(2 * math.pi * math.e * part[..., size:].exp() ** 2).sum(-1)
        return total

    def kl(self, one, other):
        total = 0.0
        for (kind, _, _, size), a, b in zip(self.heads, self.split(one), self.split(other), strict=True):
            if kind == "discrete":
                log_p, log_q = (x - x.logsumexp(-1, keepdim=True) for x in (a, b))
                total = total + (log_p.exp() * (log_p - log_q)).sum(-1)
            else:
                (m, s), (n, r) = ((x[..., :size], x[..., size:].exp()) for x in (a, b))
                total = total + (torch.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5).sum(-1)
        return total


class Reference:
    """Weights, optimizer, statistics and proximal policy of one run, and its updates."""

    def __init__(self, settings, policy, weights, obs_size, mask):
        """settings: name with a dot -> value. weights: name -> float64. mask: name of the leaf with the mask or ""."""
        self.s, self.policy, self.mask = settings, policy, mask
        self.theta = {name: x.clone() for name, x in weights.items()}
        self.m = {name: torch.zeros_like(x) for name, x in weights.items()}
        self.v = {name: torch.zeros_like(x) for name, x in weights.items()}
        self.steps = 0
        self.obs_rows, self.returns = torch.zeros(0, obs_size).double(), torch.zeros(0).double()  # all that counted
        self.target_batches, self.advantage_batches = [], []  # (rows, mean, mean square) of every batch that counted
        self.target_mean, self.target_std = 0.0, 1.0
        self.trajectory = [self.theta]  # weights that the averaged policy averages
        self.snapshots = []  # (weights, obs statistics) at the start of every update
        self.lr, self.kl, self.ess = settings["optim.lr"], settings["optim.kl_target"], 1.0
        self.entropies, self.slow_only = [], False  # of SFPO
        self.dual, self.variance, self.progress = settings["surrogate.dual_start"], 0.0, 0.0
        self.output = self.logits = None

    # -- network -----------------------------------------------------------------------------------------------------

    def obs_statistics(self):
        if not len(self.obs_rows):
            return torch.zeros(self.obs_rows.shape[1]).double(), torch.ones(self.obs_rows.shape[1]).double()
        return self.obs_rows.mean(0), 1 / torch.sqrt(self.obs_rows.var(0, correction=0) + 1e-8)

    def forward(self, theta, obs, first, state, statistics=None):
        """obs [T, b, ...] -> params [T, b, K], value [T, b]; the output of the median head is kept in `self.output`.

        The logits of the bins of the value are kept in `self.logits`.
        """
        x = obs["obs"]
        if self.s["normalize.obs"]:
            mean, inv_std = self.obs_statistics() if statistics is None else statistics
            x = ((x - mean) * inv_std).clamp(-10, 10)

        def encode(trunk):
            weight, bias = theta[f"{trunk}.encoders.0.layers.0.weight"], theta[f"{trunk}.encoders.0.layers.0.bias"]
            return torch.tanh(x @ weight.T + bias)

        features = self._core(theta, encode("trunk"), first, state)
        raw = features @ theta["policy_head.weight"].T + theta["policy_head.bias"]
        if self.mask:
            raw = torch.where(obs[self.mask] != 0, raw, MASKED)
        columns, used, dims = [], 0, 0
        for kind, _, _, size in self.policy.heads:
            columns.append(raw[..., used : used + size])
            used += size
            if kind == "box":
                columns.append(theta["log_std"][dims : dims + size].expand(*raw.shape[:-1], size))
                dims += size
        inputs = encode("critic") if self.s["model.separate"] else features
        value = inputs @ theta["value_head.weight"].T + theta["value_head.bias"]
        if self.s["model.value_head"] == "hl_gauss":
            self.logits = value
            edges = self.edges()
            probabilities = value.exp() / value.exp().sum(-1, keepdim=True)
            value = (probabilities * (edges[:-1] + edges[1:]) / 2).sum(-1)
        else:
            value = value[..., 0]
        if "median_head.weight" in theta:
            self.output = (inputs @ theta["median_head.weight"].T + theta["median_head.bias"])[..., 0]
        return torch.cat(columns, -1), value

    def edges(self):
        """Of the bins of the value, one more than there are bins."""
        low, high, bins = (self.s[f"model.value_{name}"] for name in ("low", "high", "bins"))
        return torch.tensor([low + (high - low) * n / bins for n in range(bins + 1)], dtype=torch.float64)

    def cross_entropy(self, target):
        """Of the bins under a normal distribution around the target, cut off at the ends of the range."""
        edges = self.edges()
        deviation = self.s["loss.value_sigma"] * float(edges[1] - edges[0])
        center = target.clamp(float(edges[0]), float(edges[-1]))[..., None]
        below = torch.distributions.Normal(center, deviation).cdf(edges)
        wanted = (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])
        return -(wanted * (self.logits - self.logits.logsumexp(-1, keepdim=True))).sum(-1)

    def _core(self, theta, features, first, state):
        kind = self.s["model.core"]
        if kind == "none":
            return features
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w, u, b, c = (theta[f"trunk.core.cell.{name}"] for name in names)
        rows = []
        for x, new in zip(features, first, strict=True):
            state = torch.where(new[:, None], torch.zeros_like(state), state)
            if kind == "gru":
                (r, z, n), (rh, zh, nh) = (x @ w.T + b).chunk(3, -1), (state @ u.T + c).chunk(3, -1)
                r, z = torch.sigmoid(r + rh), torch.sigmoid(z + zh)
                state = (1 - z) * torch.tanh(n + r * nh) + z * state
                rows.append(state)
            else:
                h, cell = state.chunk(2, -1)
                i, f, g, o = (x @ w.T + b + h @ u.T + c).chunk(4, -1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(cell)
                state = torch.cat([h, cell], -1)
                rows.append(h)
        return torch.stack(rows)

    # -- once per update ---------------------------------------------------------------------------------------------

    def reward(self, reward):
        reward = reward * self.s["env.reward_scale"]
        if self.s["normalize.reward"]:
            var = self.returns.var(correction=0) if len(self.returns) else torch.ones(()).double()
            reward = (reward / torch.sqrt(var + 1e-8)).clamp(-10, 10)
        clip = self.s["env.reward_clip"]
        return reward.clamp(-clip, clip) if clip else reward

    def trace(self, batch, value, log_rho):
        """Targets, advantages and weights [T, B], by the sums that define them."""
        s, valid = self.s, batch.valid
        steps, lanes = valid.shape
        gamma, lam, kind = s["trace.gamma"], s["trace.trace_lambda"], s["trace.estimator"]
        rho = log_rho.clamp(-LIMIT, LIMIT).exp()
        leak = s["trace.leak"] if kind == "leaky_vtrace" else 1.0

        def clipped(x, bound):
            return (1 - leak) * x + leak * torch.clamp(x, max=bound)

        reward = self.reward(batch.reward)
        target, advantage = value[:-1].clone(), torch.zeros(steps, lanes).double()
        for b in range(lanes):
            ended = batch.terminated[:, b] | batch.truncated[:, b]
            end = []  # last row of the segment that a row belongs to
            for t in range(steps):
                last = t
                while last + 1 < steps and not ended[last] and valid[last + 1, b]:
                    last += 1
                end.append(last)
            delta = [
                reward[t, b] + gamma * (0.0 if batch.terminated[t, b] else value[t + 1, b]) - value[t, b]
                for t in range(steps)
            ]
            for t in reversed(range(steps)):
                if not valid[t, b]:
                    continue
                rows = range(t, end[t] + 1)
                if kind == "gae":
                    advantage[t, b] = sum((gamma * lam) ** (k - t) * delta[k] for k in rows)
                    target[t, b] = value[t, b] + advantage[t, b]
                elif kind in ("retrace", "truncated_is", "recursive_retrace", "rbis"):
                    beta_target, beta = torch.clamp(rho[t, b], max=s["trace.rho_bar"]), torch.ones(()).double()
                    for k in rows:
                        if k > t and kind == "truncated_is":
                            beta_target, beta = (
                                lam ** (k - t) * torch.clamp(rho[first : k + 1, b].prod(), max=1.0)
                                for first in (t, t + 1)
                            )
                        elif k > t:
                            beta_target, beta = (
                                self.trace_weight(kind, x, rho[k, b], k - t) for x in (beta_target, beta)
                            )
                        target[t, b] += gamma ** (k - t) * beta_target * delta[k]
                        advantage[t, b] += gamma ** (k - t) * beta * delta[k]
                else:
                    product = torch.ones(()).double()
                    for k in rows:
                        weight = clipped(rho[k, b], s["trace.rho_bar"])
                        target[t, b] += gamma ** (k - t) * product * weight * delta[k]
                        product = product * lam * clipped(rho[k, b], s["trace.c_bar"])
                    later = target[t + 1, b] - value[t + 1, b] if end[t] > t else 0.0
                    advantage[t, b] = delta[t] + gamma * lam * later
        weight = torch.ones_like(rho) if kind == "gae" else clipped(rho, s["trace.pg_rho_bar"])
        return target, advantage, weight

    def trace_weight(self, kind, before, rho, age):
        """2301.11321: the weight of a temporal difference so many steps later, from the one before it."""
        lam = self.s["trace.trace_lambda"]
        if kind == "retrace":
            return before * lam * torch.clamp(rho, max=1.0)
        if kind == "recursive_retrace":
            return lam * torch.clamp(rho * before, max=1.0)
        return torch.clamp(rho * before, max=lam**age)

    def averaged(self, batches, span, x, valid):
        """Mean and variance over the batches, the newest included, with weights that fall by the span; or None."""
        rows = x[valid]
        batch = (len(rows), rows.mean(), (rows**2).mean()) if len(rows) else (0, 0.0, 0.0)
        if all(math.isfinite(number) for number in batch):
            batches.append(batch)
        decay = 1 - 2 / (1 + span)
        shares = [decay**age * batches[-1 - age][0] for age in range(len(batches))]
        if not sum(shares):
            return None
        mean, square = (
            sum(share * batches[-1 - age][i] for age, share in enumerate(shares)) / sum(shares) for i in (1, 2)
        )
        return mean, square - mean**2

    def baseline(self, batch, params, advantage, weight, log_rho):
        """sum of (w^2 |d log policy / d params|^2 A) / sum of (w^2 |d log policy / d params|^2), over rows."""
        where, above, below = self.s["surrogate.behavior_weight"], 0.0, 0.0
        for t, b in batch.valid.nonzero().tolist():
            taken = {name: leaf[t, b] for name, leaf in batch.action.items()}
            row = params[t, b].clone().requires_grad_()
            with torch.enable_grad():
                (score,) = torch.autograd.grad(self.policy.log_prob(row, taken), row)
            w = 1.0
            if where in ("surrogate", "twice"):
                w *= min(max(math.exp(log_rho[t, b]), math.exp(-LIMIT)), self.s["surrogate.weight_cap"])
            if where in ("trace", "twice"):
                w *= float(weight[t, b])
            size = w**2 * float((score**2).sum())
            above, below = above + size * float(advantage[t, b]), below + size
        return above / below if below else 0.0

    # -- the loss ----------------------------------------------------------------------------------------------------

    def proximal(self, rows, log_prob, start):
        """log-probability and parameters (or None) of the proximal policy in a minibatch."""
        s, kind = self.s, self.s["proximal.policy"]
        if kind == "behavior":
            return rows.log_prob, rows.params
        if kind == "recompute":
            return start["log_prob"], start["params"]
        if kind == "interpolate":
            alpha = 1 / rows.lag.clamp(min=1)
            return alpha * rows.log_prob + (1 - alpha) * log_prob.detach(), None

        def evaluate(theta, statistics=None):
            with torch.no_grad():
                params, _ = self.forward(theta, rows.obs, rows.first, rows.state, statistics)
                return self.policy.log_prob(params, rows.action), params

        if kind == "ewma":
            return evaluate(self.average())
        if s["proximal.snapshot_age"]:
            return evaluate(self.snapshots[-1 - min(s["proximal.snapshot_age"], len(self.snapshots) - 1)][0])
        found = rows.log_prob.clone()
        for age in range(min(len(self.snapshots), s["proximal.snapshots_kept"])):
            found = torch.where(rows.lag == age, evaluate(*self.snapshots[-1 - age])[0], found)
        return found, None

    def average(self):
        """sum over all weights so far of beta^age weight, divided by the sum of beta^age."""
        center = self.s["proximal.center_of_mass"] or self.s["batch.epochs"] * self.s["batch.minibatches"]
        beta = center / (1 + center)
        powers = [beta**age for age in range(len(self.trajectory))]
        return {
            name: sum(power * theta[name] for power, theta in zip(powers, reversed(self.trajectory), strict=True))
            / sum(powers)
            for name in self.theta
        }

    def prefix(self, batch, log_rho):
        """Smallest rho of the steps of an episode before each step, 1 at its first step in the batch."""
        steps, lanes = log_rho.shape
        found = torch.ones(steps, lanes).double()
        for b in range(lanes):
            for t in range(steps):
                earlier = []
                for k in reversed(range(t)):
                    if batch.terminated[k, b] or batch.truncated[k, b] or not batch.valid[k, b]:
                        break
                    earlier.append(math.exp(log_rho[k, b]))
                found[t, b] = min(earlier, default=1.0)
        return found

    def second_moment(self, log_rho, valid):
        """Which rows M2PO keeps: it drops the row with the largest square, again and again."""
        rows = sorted(((float(log_rho[t, b]) ** 2, t, b) for t, b in valid.nonzero().tolist()), reverse=True)
        while len(rows) > 1 and not sum(x for x, _, _ in rows) / len(rows) < self.s["surrogate.second_moment"]:
            rows = rows[1:]
        keep = torch.zeros_like(valid)
        for _, t, b in rows:
            keep[t, b] = True
        return keep

    def entropy_ratio(self, params, proximal_params):
        """Which rows ERC keeps."""
        entropy, center = self.policy.entropy(params), self.policy.entropy(proximal_params)
        discrete = all(kind == "discrete" for kind, _, _, _ in self.policy.heads)
        ratio = (entropy + 1e-8) / (center + 1e-8) if discrete else torch.exp(entropy - center)
        return (ratio > self.s["surrogate.entropy_ratio_low"]) & (ratio < self.s["surrogate.entropy_ratio_high"])

    def bounds(self, ratio, advantage):
        """Lower and upper bound of BAPO."""
        s = {name.removeprefix("surrogate."): x for name, x in self.s.items() if name.startswith("surrogate.")}
        low, high = s["bound_low"], s["bound_high"]

        def share():
            positive = sum(min(r, high) * a for r, a in zip(ratio, advantage, strict=True) if a >= 0)
            negative = sum(-max(r, low) * a for r, a in zip(ratio, advantage, strict=True) if a < 0)
            return positive / (negative + 1e-8) if negative > 0 else math.inf

        while share() < s["balance"] and low < s["bound_low_max"]:
            low = min(low + 0.05, s["bound_low_max"])
        while share() < s["balance"] and high < s["bound_high_max"]:
            high = min(high + s["bound_high_step"], s["bound_high_max"])
        return low, high

    def surrogate(self, log_prob, params, proximal, proximal_params, rows, start, value):
        """Loss of every row."""
        behavior, advantage, weight, valid = rows.log_prob, start["advantage"], start["weight"], rows.valid
        opt = {name.removeprefix("surrogate."): x for name, x in self.s.items() if name.startswith("surrogate.")}
        s, kind, where = self.s, self.s["surrogate.objective"], self.s["surrogate.behavior_weight"]
        eps, cap = s["surrogate.clip"], s["surrogate.weight_cap"]
        anchored = where in ("surrogate", "twice") and kind not in ("ppo", "impala")
        if kind == "ppo" and where in ("surrogate", "twice"):
            anchored = False  # behavior is the proximal policy
        in_trace = where in ("trace", "twice")
        if in_trace:
            advantage = advantage * weight
        if kind in ("impala", "topr", "dispo"):
            cap = math.exp(LIMIT)
        anchor = torch.maximum(behavior if anchored else proximal, log_prob.detach() - math.log(cap))
        w, ratio, w_b = (log_prob - anchor).exp(), (log_prob - proximal).exp(), (proximal - anchor).exp()
        frozen = w.detach()
        if kind in ("ppo", "decoupled"):
            loss = -w_b * torch.minimum(ratio * advantage, ratio.clamp(max(0.0, 1 - eps), 1 + eps) * advantage)
            if s["surrogate.dual_clip"]:
                bound = -s["surrogate.dual_clip"] * w_b * advantage
                loss = torch.where(advantage < 0, torch.minimum(loss, bound), loss)
            return loss
        if kind == "impala":  # 1802.01561, sec. 4.2
            return -advantage * log_prob
        if kind == "is_pg":
            return -frozen * advantage * log_prob
        if kind == "cispo":  # 2506.13585, eq. 4 and 5
            return -frozen.clamp(max=1 + eps) * advantage * log_prob
        if kind == "topr":  # 2503.14286
            return -torch.where(advantage >= 0, torch.ones_like(w), frozen.clamp(max=1.0)) * advantage * log_prob
        if kind == "dppo_tv":  # 2602.04879
            p, q = log_prob.detach().exp(), proximal.exp()
            outside = torch.where(advantage > 0, p - q > eps, q - p > eps)
            return torch.where(outside, 0.0, -frozen * advantage * log_prob)
        if kind == "dppo_kl":
            p, q = log_prob.detach().exp(), proximal.exp()
            distance = q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p))
            away = torch.where(advantage > 0, p > q, p < q)
            return torch.where(away & (distance > eps), 0.0, -frozen * advantage * log_prob)
        if kind == "dispo":  # 2602.00983
            good = frozen.clamp(opt["weight_low"], opt["weight_high"])
            bad = frozen.clamp(opt["weight_low_negative"], opt["weight_high_negative"])
            return -torch.where(advantage > 0, good, bad) * advantage * log_prob
        if kind.startswith("rec_"):  # 2509.24203
            low, high = (1 - eps, 1 + eps) if kind == "rec_one_side" else (1 - opt["outer_low"], 1 + opt["outer_high"])
            r = ratio.detach()
            keep = torch.where(advantage >= 0, r <= high, r >= low)
            if kind == "rec_ring":
                keep = ((r >= 1 - eps) & (r <= 1 + eps)) | torch.where(advantage >= 0, r <= low, r >= high)
            return torch.where(keep, -(frozen if opt["ratio_weight"] else w_b) * advantage * log_prob, 0.0)
        if kind == "opmd":  # 2501.12599
            return -w_b * advantage * log_prob + opt["log_ratio_coef"] * torch.log(ratio) ** 2
        if kind == "asymre":  # 2506.20520
            shift = opt["baseline_shift"] * (weight if in_trace else 1.0)
            return -w_b * (advantage + shift) * log_prob
        if kind == "geppo":  # 2111.00565
            return -torch.minimum(w * advantage, torch.maximum(torch.minimum(w, w_b + eps), w_b - eps) * advantage)
        if kind == "minpro":  # 2601.22718
            return -frozen * start["prefix"] * advantage * log_prob
        if kind == "bapo":  # 2510.18927
            low, high = self.bounds(ratio.detach()[valid].tolist(), advantage[valid].tolist())
            loss = -w_b * torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            if opt["dual_clip"]:
                loss = torch.where(advantage < 0, torch.minimum(loss, -opt["dual_clip"] * w_b * advantage), loss)
            return loss
        if kind == "r2vpo":  # 2601.03320
            variance = w_b * (ratio - 1) ** 2
            self.variance = float(variance.detach()[valid].sum()) / max(1, int(valid.sum()))
            return -w * advantage + self.dual * variance
        if kind == "bpo":  # 2604.18578
            q, v = start["action_value"], value.detach()
            u = self.median if opt["median_head"] else v
            above = ((q - u.detach()) / opt["target_temperature"]).clamp(-10, 10)
            aim = 1 - eps + 2 * eps / (1 + torch.exp(-above))
            loss = w_b * torch.abs((ratio - aim) * (q - v)) * (weight if in_trace else 1.0)
            if opt["median_head"]:  # the loss of a quantile of 1/2, smoothed by the logistic distribution
                self.critic = torch.log(1 + torch.exp(q - u)) - 0.5 * (q - u)
            return loss
        if kind == "sapo":  # 2511.20347
            tau = torch.where(advantage > 0, opt["gate_temperature"], opt["gate_temperature_negative"]).double()
            return -w_b * 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage
        if kind == "mhpo":  # 2603.16929
            psi = opt["ratio_bound"] * torch.tanh(torch.log(ratio) / opt["ratio_bound"])
            plus, minus = (torch.log(1 + torch.exp(x)) for x in (psi.detach(), -psi.detach()))
            damping = (plus / opt["hazard_scale"]) ** opt["hazard_shape"]
            damping = damping + (minus / opt["hazard_scale_negative"]) ** opt["hazard_shape_negative"]
            return -w_b * torch.exp(psi - damping) * advantage
        assert kind in ("decoupled_kl", "mdpo")
        if proximal_params is None:
            distance = 0.5 * torch.log(ratio) ** 2
        elif kind == "mdpo":  # 2005.09814
            distance = self.policy.kl(params, proximal_params)
        else:
            distance = self.policy.kl(proximal_params, params)
        coefficient = s["surrogate.kl_coef"]
        if kind == "mdpo" and s["surrogate.kl_anneal"]:
            coefficient = coefficient / max(0.01, 1 - self.progress)
        return coefficient * distance - w * advantage

    def loss(self, theta, rows, start):
        """Loss of a minibatch, and its effective sample size."""
        s, valid = self.s, rows.valid
        params, value = self.forward(theta, rows.obs, rows.first, rows.state)
        self.median = self.output
        error = (value - start["target"]) ** 2
        if s["model.value_head"] == "hl_gauss":
            valid_target = torch.where(valid, start["target"], 0.0)
            error = self.cross_entropy(valid_target)
        log_prob = self.policy.log_prob(params, rows.action)
        proximal, proximal_params = self.proximal(rows, log_prob, start)
        self.critic = 0.0  # a further loss of the value network
        surrogate = self.surrogate(log_prob, params, proximal, proximal_params, rows, start, value)
        if s["surrogate.mask"] == "m2po":
            surrogate = torch.where(start["keep"], surrogate, 0.0)
        if s["surrogate.mask"] == "erc":
            surrogate = torch.where(self.entropy_ratio(params.detach(), proximal_params), surrogate, 0.0)
        if s["loss.value_clip"]:
            clip = s["loss.value_clip"]
            held = start["value"] + (value - start["value"]).clamp(-clip, clip)
            error = torch.maximum(error, (held - start["target"]) ** 2)
        per_row = surrogate + s["loss.value_coef"] * (error + self.critic)
        if s["loss.entropy_coef"]:
            per_row = per_row - s["loss.entropy_coef"] * self.policy.entropy(params)
        weights = (log_prob - rows.log_prob)[valid].exp().detach()
        ess = float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())) if len(weights) else 0.0
        return per_row[valid].sum() / max(1, int(valid.sum())), ess

    # -- the optimizer -----------------------------------------------------------------------------------------------

    def step(self, gradient, counts=True):
        """True if the step was taken: its gradient is finite. counts: the averaged policy has the new weights."""
        s = self.s
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        if not math.isfinite(norm):
            return False
        limit = s["optim.max_grad_norm"]
        scale = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        self.steps += 1
        one, two = s["optim.beta1"], s["optim.beta2"]
        new = {}
        for name, x in self.theta.items():
            g = gradient[name] * scale
            self.m[name] = one * self.m[name] + (1 - one) * g
            self.v[name] = two * self.v[name] + (1 - two) * g**2
            m, v = self.m[name] / (1 - one**self.steps), self.v[name] / (1 - two**self.steps)
            new[name] = x - self.lr * m / (v.sqrt() + s["optim.eps"])
        self.theta = new
        if counts:
            self.trajectory.append(new)
        return True

    def rate(self, progress, batch):
        o, initial = self.s["optim.schedule"], self.s["optim.lr"]
        if o == "linear":
            return initial * (1 - progress)
        if o == "ess":
            return initial * math.sqrt(self.ess)
        if o == "staleness":
            lags = batch.lag[batch.valid]
            return initial / max(1.0, float(lags.mean()) if len(lags) else 0.0)
        if o == "constant":
            return initial
        if not self.kl <= 2 * self.s["optim.kl_target"]:
            lr = self.lr / 1.5
        else:
            lr = self.lr * 1.5 if self.kl < self.s["optim.kl_target"] / 2 else self.lr
        return min(max(lr, self.s["optim.lr_min"]), self.s["optim.lr_max"])

    # -- an update ---------------------------------------------------------------------------------------------------

    def run(self, batch, order, progress):
        """order: for every pass the minibatches, as index of rows (by_rows) or lanes; None: everything."""
        s, valid = self.s, batch.valid
        self.lr, self.progress = self.rate(progress, batch), progress
        if s["optim.adam_rel"]:
            self.steps = 0
        with torch.no_grad():
            params, output = self.forward(self.theta, batch.obs, batch.first, batch.state)
            params = params[:-1]
            value = output * self.target_std + self.target_mean
            log_prob = self.policy.log_prob(params, batch.action)
            log_rho = log_prob - batch.log_prob
            target, advantage, weight = self.trace(batch, value, log_rho)
            gain = advantage
            if s["normalize.value_targets"]:
                self._move_value_head(target, valid)
            _, head = self.forward(self.theta, batch.obs, batch.first, batch.state)  # after its correction, if any
            if s["normalize.advantage"]:
                moments = self.averaged(self.advantage_batches, s["normalize.advantage_span"], advantage, valid)
                mean, var = (0.0, 1.0) if moments is None else moments
                advantage = (advantage - mean) / (math.sqrt(max(0.0, var)) + 1e-8)
            if s["trace.baseline"] == "optimal":
                advantage = advantage - self.baseline(batch, params, advantage, weight, log_prob - batch.log_prob)
            start = {
                "log_prob": log_prob, "params": params, "advantage": advantage, "weight": weight,
                "value": (value[:-1] - self.target_mean) / self.target_std,
                "target": (target - self.target_mean) / self.target_std,
                "action_value": head[:-1] + gain / self.target_std,
            }  # fmt: skip
            if s["surrogate.objective"] == "minpro":
                start["prefix"] = self.prefix(batch, log_rho)
            if s["surrogate.mask"] == "m2po":
                start["keep"] = self.second_moment(log_rho, valid)
            self.snapshots.append((self.theta, self.obs_statistics()))
            before = params
        cut = batch._replace(obs={name: leaf[:-1] for name, leaf in batch.obs.items()}, first=batch.first[:-1])
        fast = s["optim.sfpo_steps"]
        skipped = 0
        if fast and self.makes_fast_passes(float(self.policy.entropy(params)[valid].mean())):
            origin = self.theta
            skipped = sum(self.one_pass(cut, start, minibatches, counts=False) for minibatches in order[:fast])
            alpha = s["optim.sfpo_alpha"]
            self.theta = {name: x + alpha * (self.theta[name] - x) for name, x in origin.items()}
        skipped += sum(self.one_pass(cut, start, minibatches) for minibatches in order[fast:])
        if self.newest_ess > 0.0:  # otherwise nothing was measured
            self.ess = self.newest_ess
        with torch.no_grad():
            after, _ = self.forward(self.theta, cut.obs, cut.first, cut.state)
            self.kl = float(self.policy.kl(before, after)[valid].sum() / max(1, int(valid.sum())))
            self.kl = math.nan if skipped else self.kl
        if not skipped:
            self.obs_rows = torch.cat([self.obs_rows, cut.obs["obs"][valid]])
            self.returns = torch.cat([self.returns, batch.discounted_return[valid] * s["env.reward_scale"]])
        return skipped

    def makes_fast_passes(self, entropy):
        """Whether the z-score of the entropies of the last updates has always been below the threshold."""
        if math.isfinite(entropy):
            self.entropies.append(entropy)
            newest = self.entropies[-self.s["optim.sfpo_window"] :]
            if len(newest) == self.s["optim.sfpo_window"]:
                mean = sum(newest) / len(newest)
                deviation = math.sqrt(sum((x - mean) ** 2 for x in newest) / len(newest))
                self.slow_only |= (entropy - mean) / (deviation + 1e-9) >= self.s["optim.sfpo_threshold"]
        return not self.slow_only

    def one_pass(self, batch, start, minibatches, counts=True):
        """An optimizer step with every minibatch; the number of those that were not taken."""
        skipped = 0
        for index, by_rows in minibatches:
            rows, part = (batch, start) if index is None else _minibatch(batch, start, index, by_rows)
            theta = {name: x.clone().requires_grad_() for name, x in self.theta.items()}
            loss, self.newest_ess = self.loss(theta, rows, part)
            found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
            gradient = {
                name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(theta.items(), found, strict=True)
            }
            taken = self.step(gradient, counts)
            skipped += not taken
            if taken and counts and self.s["surrogate.objective"] == "r2vpo":
                rate, target_variance = self.s["surrogate.dual_rate"], self.s["surrogate.variance_target"]
                self.dual = max(0.0, self.dual + rate * (self.variance - target_variance))
        return skipped

    def _move_value_head(self, target, valid):
        """PopArt: the new moments first, and a head that gives the same values in their units."""
        known = len(self.target_batches)
        moments = self.averaged(self.target_batches, 199.0, target, valid)
        if moments is None or len(self.target_batches) == known or not self.target_batches[-1][0]:
            return
        old_mean, old_std = self.target_mean, self.target_std
        self.target_mean, self.target_std = float(moments[0]), max(1e-4, math.sqrt(max(0.0, float(moments[1]))))
        theta = dict(self.theta)
        if self.s["model.value_head"] == "hl_gauss":  # its bins are those of normalized values
            return
        theta["value_head.weight"] = theta["value_head.weight"] * old_std / self.target_std
        theta["value_head.bias"] = (theta["value_head.bias"] * old_std + old_mean - self.target_mean) / self.target_std
        if "median_head.bias" in theta:
            theta["median_head.weight"] = theta["median_head.weight"] * old_std / self.target_std
            bias = theta["median_head.bias"] * old_std + old_mean - self.target_mean
            theta["median_head.bias"] = bias / self.target_std
        self.theta = theta


def _minibatch(batch, start, index, by_rows):
    """Some rows, as [1, b], or some lanes [T, b]."""

    def cut(x: Tensor) -> Tensor:
        return x.flatten(0, 1)[index][None] if by_rows else x[:, index]

    fields = {}
    for name, x in batch._asdict().items():
        if isinstance(x, dict):
            fields[name] = {key: cut(leaf) for key, leaf in x.items()}
        else:
            fields[name] = x if x is None else x[index] if name == "state" else cut(x)
    return type(batch)(**fields), {name: cut(x) for name, x in start.items()}
