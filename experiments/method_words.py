"""What the page of a report says of the methods."""

DESCRIPTIONS = {
    "gradual-linear": "gradual fine-tuning; the target weight rises linearly with the step.",
    "gradual-self-paced": "gradual fine-tuning; the target weight rises as fast as the network follows.",
    "plain": "flow matching on the target data, started at the base.",
    "from-scratch": "flow matching on the target data, started at random parameters.",
    "gradual-fast": "gradual fine-tuning; the target weight rises linearly, four times as fast.",
    "gradual-cosine": "gradual fine-tuning; the target weight rises along half a cosine.",
    "gradual-temperature": "gradual fine-tuning; the temperature falls linearly: most of the way is left to the end.",
    "gradual-constant": "gradual fine-tuning at one temperature, without cooling.",
    "plain-warmup": "plain, with a learning rate that rises as the target weight of gradual-linear does; under Adam "
    "its effective target weight still runs far ahead of gradual-linear's.",
    "plain-geometric": "plain, with a learning rate that rises geometrically, a thousandfold, over the cooling steps, "
    "so that it leaves the base about as slowly as gradual-linear.",
    "l2-sp": "plain, with an L2 penalty on the distance of the parameters from the base's.",
    "prior-preservation": "plain, with a part of each batch taken from samples of the base.",
    "distillation": "plain, with a penalty on the distance to the base on the base's own paths.",
    "diff-tuning": "new data at noisy times, samples of the base at times near data (Diff-Tuning).",
    "interpolated": "plain, evaluated at parameters between the base's and the fine-tuned ones (WiSE-FT).",
    "terminal-target": "the terminal objective: flow matching on target rows of weight exp(-(1 - w) l), with l the "
    "log-ratio of target and base; w as in gradual-linear.",
    "terminal-base": "the same law from samples of the base of weight exp(w l).",
    "terminal-reward": "the same law by memoryless adjoint matching, with w l as its reward, at λ = 1.",
    "gradual-coupled": "gradual-linear, with noise and data paired by the coupling of the run.",
    "gradual-half": "gradual-linear at half of the cost, where reflow starts.",
    "reflow": "flow matching, started at gradual-half, on pairs of noise and what its flow makes of it.",
    "reflow-again": "another round, on pairs of reflow, at half of the cost more than all others.",
    "mean-flow": "the average velocity of the flow of the target data, for steps of any length.",
    "gradual-mean-flow": "the same of the blended velocity of gradual-linear.",
    "gradual-mean-flow-coupled": "gradual-mean-flow, with noise and data paired by the coupling of the run.",
    "gradual-mean-flow-adaptive": "gradual-mean-flow with the weight 1 / (squared error + 0.001) of each row.",
}
"""By method."""

TERMINAL_NOTES = (
    "The terminal objective weights the end of the path, not the drift: at target weight w it leads to the law "
    "q^w p^(1 - w) of target q and base p, another law than the one of the blended drift. At w = 1 both aim at q.",
    "Its methods know the ratio of the two laws from a classifier alone: terminal-base and terminal-reward never see "
    "the new data but through it. The weight ŵ that the network has reached says of the drift, not of the end law, how "
    "far it has moved.",
    "Below, ratio_log_loss is the held-out loss of the classifier in nats (log 2 = 0.69 where it knows nothing) and "
    "ratio_steps_kept the step at which it was least. In the plane, ratio_rmse is the root mean squared difference to "
    "the log-ratio of the two laws of the data, where that is finite; the law of the base model is a little another.",
)


FEW_STEP_NOTES = (
    "A method may spend on training as many forward evaluations of the network as plain does in its steps, and takes "
    "fewer steps where a step costs more; gradual-half spends half, and reflow-again half more. A row that is trained "
    "on counts three, the base one while the temperature is above zero, a forward-mode derivative two, each pair of "
    "reflow its Euler steps, and what reflow starts from in full. What a coupling takes "
    "besides is not counted.",
    "Where a method learns an average velocity, samples are by steps of it, and its scores are of these; path length, "
    "distance to the base's drift and sampling paths are of its velocity at s = t.",
)
