"""How much PROPS lowers the sampling error of a batch, where its policy is published once per update or more often.

    python benchmarks/props.py            about half a minute, NumPy alone

PROPS (Corrado & Hanna 2023, arXiv 2311.08290) fits a second policy phi before data are collected, which selects more
often what the data so far have too little of, and acts with it in place of the policy pi:

    maximize over phi  mean over the data of -max(g, clip(g, 1 - eps, 1 + eps)) - coef KL(pi || phi),   g = phi / pi

The error is the total variation between the actions of the data and pi, mean over the visited states of a random walk
with slips. pi is a fixed table: the best case for PROPS, because older batches stay data of the present policy. Rows of
the table: how often phi is fitted within a batch, and whether it sees the newest data (lag 0) or is one batch late, as
in an asynchronous run, where the next batch is collected while this one is learned from. Cells: error of the newest
batch / of the newest batches together (coef).
"""

from __future__ import annotations

import argparse

import numpy as np

STATES, ACTIONS, SLIP = 8, 3, 0.1
EPS, FITS, RATE = 0.3, 40, 0.5
COEFS = (0.1, 1.0, 10.0)  # of the KL; the best one of each cell is shown


def softmax(x: np.ndarray) -> np.ndarray:
    """[S, A] logits -> probabilities."""
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def fit(pi: np.ndarray, counts: np.ndarray, coef: float) -> np.ndarray:
    """The policy phi [S, A] for data with these counts [S, A], by gradient ascent from pi."""
    logits, visits = np.log(pi), np.maximum(counts.sum(-1, keepdims=True), 1.0)
    seen = counts.sum(-1, keepdims=True) > 0
    share = counts / visits
    for _ in range(FITS):
        phi = softmax(logits)
        g = phi / pi
        pull = -share * g * (g > 1.0 - EPS)
        gradient = pull - phi * pull.sum(-1, keepdims=True) - coef * (phi - pi)
        logits = logits + RATE * gradient * seen
    return softmax(logits)


def collect(rng: np.random.Generator, acting: np.ndarray, state: np.ndarray, steps: int, counts: np.ndarray) -> None:
    """Act for some steps in every lane; changes states [E] and counts [S, A]."""
    below = acting.cumsum(-1)
    for _ in range(steps):
        action = (rng.random(len(state))[:, None] > below[state]).sum(-1).clip(max=ACTIONS - 1)
        np.add.at(counts, (state, action), 1)
        moved = np.where(rng.random(len(state)) < SLIP, rng.integers(0, ACTIONS, len(state)), action) - 1
        state[:] = (state + moved).clip(0, STATES - 1)


def error(counts: np.ndarray, pi: np.ndarray) -> float:
    """Total variation between the actions of the data and pi, mean over visits."""
    visits = counts.sum(-1)
    share = counts / np.maximum(visits, 1)[:, None]
    return float((visits * 0.5 * np.abs(share - pi).sum(-1)).sum() / visits.sum())


def run(seed: int, lanes: int, steps: int, kept: int, every: int, late: bool, coef: float) -> tuple[float, float]:
    """Errors of the newest batch and of the newest `kept` batches together, mean over ten of them.

    every: fits per batch; 0: act with pi. late: phi does not see the newest batch, and is fitted once.
    """
    rng = np.random.default_rng(seed)
    pi = softmax(rng.normal(size=(STATES, ACTIONS)))
    state, batches, alone, together = rng.integers(0, STATES, lanes), [], [], []
    for number in range(kept + 10):
        counts, phi = np.zeros((STATES, ACTIONS)), pi
        older = batches[-(kept - 1) :] if kept > 1 else []
        if late:
            older = batches[-kept:-1]
        for _ in range(max(every, 1)):
            data = sum(older, np.zeros_like(counts)) + counts
            if every and data.sum():
                phi = fit(pi, data, coef)
            collect(rng, phi, state, steps // max(every, 1), counts)
        batches.append(counts)
        if number >= kept:
            alone.append(error(counts, pi))
            together.append(error(sum(batches[-kept:], np.zeros_like(counts)), pi))
    return float(np.mean(alone)), float(np.mean(together))


CASES = {
    "pi (on policy)": (0, False),
    "phi once per batch": (1, False),
    "phi 4 times per batch": (4, False),
    "phi 16 times per batch": (16, False),
    "phi once per batch, one batch late": (1, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kept", type=int, default=2, help="batches whose data phi balances")
    args = parser.parse_args()
    sizes = ((4, 16), (16, 32), (32, 64))
    print("| acts with | " + " | ".join(f"{lanes} x {steps} = {lanes * steps} rows" for lanes, steps in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name, (every, late) in CASES.items():
        cells = []
        for lanes, steps in sizes:
            means = []
            for coef in COEFS if every else COEFS[:1]:
                found = [run(seed, lanes, steps, args.kept, every, late, coef) for seed in range(args.seeds)]
                means.append((*np.mean(found, 0), coef))
            alone, together, coef = min(means, key=lambda mean: mean[1])
            cells.append(f"{alone:.3f} / {together:.3f}" + (f" ({coef:g})" if every else ""))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
