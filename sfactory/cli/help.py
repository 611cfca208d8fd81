"""The texts of --help: every verb in one screen."""

HELP = """\
sfactory: train a policy as fast as one machine allows

  sfactory train  TARGET [--section.field value ...]    TARGET: a preset, or FAMILY/ID
  sfactory resume runs/NAME [--section.field value ...] go on from the newest checkpoint
  sfactory eval   runs/NAME [--greedy] [--video OUT.mp4] play whole games with the newest checkpoint
  sfactory bench  TARGET [--search 60]                  how fast, which share of what is possible
  sfactory profile TARGET [-o trace.json]               one timeline of all processes
  sfactory watch  runs/NAME                             the live panel of a run elsewhere
  sfactory export RUN -o policy.onnx                    one file that needs no sfactory, checked
  sfactory info   runs/NAME                             what a checkpoint is, and is it whole?
  sfactory compare RUNS... [-o plot.png]                curves and scores with intervals, side by side
  sfactory report runs/NAME [-o report.html]            one run as a page
  sfactory sweep  TARGET --seeds 0..4 --grid optim.lr=1e-4,3e-4 --jobs 2
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
  --eval.every N               whole games every N steps, in a process of their own
  --env.settings.KEY VALUE     setting of the environment itself
"""

BENCH_HELP = """\
sfactory bench TARGET [--section.field value ...]

  sfactory bench minatar/breakout                            costs, roofline, share, bottleneck
  sfactory bench atari/pong --search 120 --write best.toml   faster settings, found by trying
  sfactory train atari/pong --config best.toml

  --seconds S      length of the run that is measured                        (20)
  --search S       then look for faster settings for S seconds               (0: do not)
  --write FILE     write them as TOML; alone it looks for 60 s
  --config FILE    settings to begin with, as for train
  --json           everything as JSON on stdout

"at best" is the environment's own library, and the network in plain torch at the batch, threads and
memory format that cost least: nothing of sfactory's, where there is a plain form. The roofline of
N cores is N / (sum of these costs per step); with a GPU it is the environment alone on all cores.
"here" are sfactory's own stages, each alone. On a busy machine all is too low, not by one factor.
"""

PROFILE_HELP = """\
sfactory profile TARGET [--section.field value ...]

  sfactory profile minatar/breakout -o trace.json        then open it at https://ui.perfetto.dev

  -o FILE          the timeline, in the Trace Event Format                   (trace.json)
  --seconds S      length of the timeline: the last S seconds of a short run (2)
  --config FILE    settings to begin with, as for train

One row per process, one block per stage: what each worker did when, and whom it waited for. A table
of the stages is printed too: share of the worker's time, how often, how long on average and at most.
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

Plays whole games with the newest checkpoint in environments of their own. Nothing else is written.

  --episodes N      games (100)
  --greedy          the likeliest action instead of a sampled one
  --max-steps N     a game is cut here and counts with its return so far (its limit, or 10000)
  --seed N          seed of environments and sampling (0)
  --video OUT.mp4   film the first game of environment 0 (atari, minatar, classic control, MuJoCo)
  --video-games N   film its first N games: OUT-1.mp4, OUT-2.mp4, ... (1)
  --json            everything as one JSON object on stdout

During training: the setting eval.every of sfactory train; eval/* are the curves.
"""

WATCH_HELP = """\
sfactory watch runs/NAME

Shows the live panel of a run that was started elsewhere, in the background or on another terminal,
from its files, until it ends. Ctrl-C ends the watching, not the run. Off a terminal: a line now and
then.
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

COMPARE_HELP = """\
sfactory compare RUNS... [-o plot.png] [--by env_steps|seconds]

  sfactory compare runs/a* runs/b*                       a table
  sfactory compare runs/a* runs/b* -o plot.png           and a picture
  sfactory compare runs/minatar-breakout_sweep_1f0c2a    every run of a sweep

Runs of the same settings but for their seed are one group. Scores (interquartile mean over seeds,
95 % stratified-bootstrap interval, chance to beat the first group) are read where the shortest run
ends. Every task has its own table; human-normalised scores (Atari) are averaged over tasks too. Runs
under different protocols are refused.

  -o FILE           .png, .svg or .pdf; without a suffix PNG and SVG; several are possible
  --by AXIS         compare at the same env_steps or seconds (env_steps; the picture shows both)
  --json            everything as one JSON object on stdout, curves too
"""

REPORT_HELP = """\
sfactory report runs/NAME [-o report.html]

One run as one HTML page that needs nothing else, no network and no scripts: how it ended, curves,
lag, where the time went, faults and events, configuration, checkpoints, videos of the folder.

  -o FILE           where to (runs/NAME/report.html); videos are linked from there
"""

SWEEP_HELP = """\
sfactory sweep TARGET [--seeds 0..4] [--grid NAME=V1,V2 ...] [--jobs N] [--section.field value ...]

  sfactory sweep minatar/breakout --seeds 0..4 --grid optim.lr=1e-4,3e-4 --jobs 2

One run per seed and cell of the grid, each a process and a folder of its own, and a table at the end.
The same command again goes on: what is finished is left alone, what was interrupted is resumed.

  --seeds S         0..4 (five of them), or 1,5,7             (0..2)
  --grid NAME=...   values of a setting; several --grid: all combinations; model.hidden=64,128+32
  --jobs N          runs at the same time                     (1)
  --dir DIR         folder of the sweep                       (runs/<preset>_sweep_<settings>)
  --retry           runs that failed are tried again
  --config FILE     as in `train`
  --json            the table as JSON on stdout, as of `compare`
Exit code: 0, or that of the first run that failed; 130 after Ctrl-C, 143 after SIGTERM, all saved.
"""
