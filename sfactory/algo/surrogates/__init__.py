"""Surrogate losses of the policy for stale data, per sample (`loss.total_loss` takes the mean).

Three policies: ``policy`` (being trained, has the gradient), ``proximal`` (center of the trust region),
``behavior`` (selected the actions). With log-probabilities of the action taken,

    r   = policy / proximal      the trust region is a bound on r
    w_b = proximal / behavior    behavior weight: corrects for stale data; constant in the gradient
    w   = policy / behavior = r * w_b

w_b belongs in the loss exactly once. ``behavior_weight`` selects where it is applied:

    surrogate   here, inside the ratio: the loss is anchored at behavior
    trace       the trace's clipped weight multiplies the advantage: the loss is anchored at proximal
                (IMPACT, arXiv 1912.00167)
    none        nowhere (the "proximal" row of Hilton's staleness experiment)
    twice       in both places, as in Sample Factory's V-trace + PPO; for comparison only

`weight_rule.check_weights` rejects combinations that would apply it twice, or never, without stating so.

    options           hyper-parameters, and which objective reads which of them (no torch)
    ratios            what an objective is given: a minibatch and its ratios
    objective         one entry of the registry: computes the ratios, masks reset rows, calls the loss
    clipped           PPO and its relatives
    policy_gradients  weight * advantage * log policy, with many weights and masks
    penalties         a penalty on the distance to the proximal policy instead of a clip
    smooth            gates and targets instead of a clip
    batch_rules       what depends on a whole batch: bounds, masks, the prefix of a trajectory
    dual              a dual variable, the only state
    registry          all objectives by name

An objective is a function ``(q: Ratios, o: Options) -> Tensor`` with one entry in `registry.SURROGATES`. To add a
hyper-parameter, add a field to `options.Options`, its name to `options.USES`, and a setting of the same name to
`SurrogateConfig` in sfactory/config/schema.py.

Shapes: [...] is [N] or [T, b], the same for all; K distribution parameters. Ratios are kept as logarithms as long as
possible. Reset rows (valid False) enter no exponential and have loss 0.
"""
