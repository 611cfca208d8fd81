"""The texts of --help: every verb in one screen."""

HELP = """\
sfactory: train a policy as fast as one machine allows

  sfactory train  TARGET [--section.field value ...]    TARGET: a preset, or FAMILY/ID
  sfactory resume runs/NAME [--section.field value ...] go on from the newest checkpoint
  sfactory eval   runs/NAME [--episodes 100] [--greedy] play whole games with the newest checkpoint
  sfactory export RUN -o policy.onnx                    one file that needs no sfactory, checked
  sfactory info   runs/NAME                             what a checkpoint is, and is it whole?
  sfactory verify-resume TARGET                         kill, resume, and compare bit for bit
  sfactory check-env TARGET                             does an environment keep its promises?
  sfactory doctor                                       does this machine help or hinder?
  sfactory presets                                      what comes with settings that work
  sfactory envs [FAMILY]                                families of environments; the ids of one
  sfactory completion bash|zsh|fish                     a script that completes all of this
  sfactory --version

sfactory VERB --help says more. To begin:  sfactory train minatar/breakout
"""

TRAIN_HELP = """\
sfactory train TARGET [--section.field value ...]

  sfactory train minatar/breakout                        a preset
  sfactory train gymnasium/CartPole-v1                   any environment of an installed family
  sfactory train atari/pong,atari/boxing                 one policy for several tasks
  sfactory train minatar/breakout --config my.toml       file over preset; flags win over both
  sfactory train minatar/breakout --optim.lr 1e-3 --stop.env-steps 50k --run.seed 3

  --config FILE                TOML with [sections]; may be given several times
  --print-config               print the resolved settings as TOML, start nothing
  --json                       print how the run ended as JSON on stdout
  --quiet                      no progress
  --help-all                   every setting with its meaning

  --run.dir DIR                folder of the run               (runs/<preset>_s<seed>_<date-time>)
  --run.seed N                 seed                            (1)
  --run.init-from RUN          begin with the weights of another run
  --run.mode async|lockstep    as fast as can be, or deterministic
  --stop.env-steps N           trained steps                   (10M and 50k are numbers)
  --stop.seconds S, --stop.target-return R                     other ways to be finished
  --sampling.num-samplers N    processes that step environments
  --sampling.envs-per-group N  environments stepped together
  --optim.lr X                 learning rate
  --env.settings.KEY VALUE     setting of the environment itself
"""

RESUME_HELP = """\
sfactory resume runs/NAME [--section.field value ...]

Goes on from the newest usable checkpoint with the settings in its config.toml. Flags change them:

  sfactory resume runs/NAME --stop.env-steps 50M

Environment and network stay what they were (exit 4 lists the differences). --allow FIELD accepts
one all the same, for example --allow env.settings.
--config, --json, --quiet, --print-config, --help-all: as in `train`.
"""

EVAL_HELP = """\
sfactory eval runs/NAME [options]

Plays whole games with the newest checkpoint in environments of their own. Nothing is written.

  --episodes N      games (100)
  --greedy          the likeliest action instead of a sampled one
  --max-steps N     a game is cut here and counts with its return so far (its limit, or 10000)
  --seed N          seed of environments and sampling (0)
  --json            everything as one JSON object on stdout
"""

VERIFY_HELP = """\
sfactory verify-resume TARGET [--section.field value ...]

Trains TARGET twice in lockstep: straight through, and killed with SIGKILL at random moments and
resumed. Exit 0: weights, optimizer, averages, normalisers and metrics are the same, bit for bit.
Exit 1: what differs.

  --steps N         length of both runs in env steps (20000)
  --kills N         how often the second is killed (3)
  --seed N          of the runs and of the moments (1)
"""

CHECK_HELP = """\
sfactory check-env TARGET [--env.settings.KEY VALUE] [--env.protocol NAME]

Plays a preset's environment, or FAMILY/ID, with random actions and says whether it keeps its
promises: resets, final observations, time limits, spaces, seeds, NaN; how fast it is, and what to
train it with.
Exit 0: it does. Exit 6: it does not.

  --seconds S       at most (3)
  --seed N          of environments and actions (0)
  --json            everything as one JSON object on stdout
"""

EXPORT_HELP = """\
sfactory export RUN -o policy.onnx | policy.pt2

The newest policy of runs/NAME, or the one of runs/NAME/checkpoints/N, as one file that needs no
sfactory: observations in, the likeliest action, parameters, value and recurrent state out, any
number of rows. The normaliser of observations and the bounds of actions are inside. The file is
read back and compared with the policy on random observations; one that differs is not kept (exit 1).

  -o, --out FILE    .onnx (ONNX Runtime; pip install 'sfactory[onnx]') or .pt2 (torch.export.load)
  --json            what was written, its inputs and outputs, as one JSON object on stdout
"""

INFO_HELP = """\
sfactory info runs/NAME | runs/NAME/checkpoints/N

What a checkpoint is (the newest good one of a run): versions, steps, task, parameters per module,
files, when it was written, and whether every byte is as it was written; then the run's other ones.
Opens a stranger's file safely: nothing in it is executed, nothing is written or moved.
Exit 0: good. Exit 5: damaged.

  --json            everything as one JSON object on stdout
"""

DOCTOR_HELP = """\
sfactory doctor

What of this machine helps or hinders training, one line each, ok, warn or bad, and what to do:
Python and torch, cores against the container's quota, threads of BLAS, memory, shared memory, file
descriptors, CUDA, bf16, a compiler, rendering without a display, the runs folder, and the extras
with the line that installs them.
Exit 0: nothing prevents training, whatever is warned of. Exit 11: something does.

  --dir DIR         where runs would be written (./runs)
  --json            everything as one JSON object on stdout
"""

COMPLETION_HELP = """\
sfactory completion bash|zsh|fish

A script on stdout that completes verbs, presets, run folders, settings and their choices. To have
it in every shell, put the line into the file behind it:

  source <(sfactory completion bash)       ~/.bashrc
  source <(sfactory completion zsh)        ~/.zshrc, below compinit
  sfactory completion fish | source        ~/.config/fish/config.fish
"""
