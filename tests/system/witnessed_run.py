"""Train with a witness in the learner: python witnessed_run.py RUN_DIR [settings]. Workers import this file, too."""

import sys

from sfactory.supervisor import run_worker

learn = run_worker._run_learner


def learn_with_witness(*args):
    import witness  # imports torch, which samplers must not

    witness.install()
    return learn(*args)


run_worker._run_learner = learn_with_witness

if __name__ == "__main__":
    from pathlib import Path

    from sfactory.config import parsing, presets
    from sfactory.config.flags import split_flags
    from sfactory.supervisor.train import train

    flags, *_ = split_flags(sys.argv[2:], {})
    config = parsing.build(*presets.target_layers("self_describing:SelfDescribing"), flags)
    sys.exit(train(config, Path(sys.argv[1])).code)
