"""The columns of the table of a reward run: all are of the last evaluation."""

from experiments.summary import COLUMNS, Column

_REWARD, _DISTANCE, _DIVERSITY = "Reward", "Distance to the base", "Diversity"
_TILTED, _COST = "Distance to a law", "Cost"

# fmt: off
REWARD_COLUMNS = (
    Column("reward", "reward", "reward", _REWARD, "higher", 3, 1,
           "Mean reward of the samples, by the model that the methods were trained against."),
    Column("judged_reward", "judged", "judged reward", _REWARD, "higher", 3, 1,
           "The same by a classifier of other images and another seed, which no method was trained against: where it "
           "rises less, the first classifier was tricked."),
    Column("judged_share", "share", "share of the class", _REWARD, "higher", 3, 1,
           "Share of the samples that this other classifier takes for the wanted class."),
    Column("displacement", "moved^2", "mean squared displacement", _DISTANCE, "lower", 3, 1,
           "Mean squared distance of samples from the base's samples of the same noise."),
    Column("base_energy_distance", "energy to base", "energy distance to base", _DISTANCE, "lower", 4, 1,
           "Energy distance between the samples and those of the base from other noise, unbiased: what all samples "
           "together tell, whichever noise they came from."),
    Column("precision", "near data", "share near data", _DISTANCE, "higher", 3, 1,
           "Precision: share of the samples that lie no further from one of 512 samples of the base's data than its "
           "fifth neighbour. Low where the reward is bought with samples that the data do not have."),
    Column("retention", "drift change", "distance to base drift", _DISTANCE, "lower", 3, 1,
           "Root mean squared distance between the drift and the base's, on the base's own sampling paths."),
    Column("diversity", "diversity", "mean distance", _DIVERSITY, "as the base", 3, 1,
           "Mean distance of two samples."),
    Column("vendi", "Vendi", "Vendi score", _DIVERSITY, "higher", 1, 1,
           "Effective number of different samples, under a Gaussian kernel whose width is half the median distance "
           "of real samples; of 512 samples, and left out where there are fewer, since it depends on their number."),
    Column("tilted_energy_distance", "energy to tilted", "energy, tilted law", _TILTED, "lower", 4, 1,
           "Energy distance to the tilted law p exp(r / λ) of the data at the run's own λ, where it is known. "
           "Memoryless adjoint matching aims at it; the optimum of the other methods is another law."),
    Column("tilted_w2", "W2 to tilted", "W₂, tilted law", _TILTED, "lower", 3, 1,
           "Exact 2-Wasserstein distance to the same law."),
    Column("equal_reward_energy_distance", "energy at reward", "energy, equal reward", _TILTED, "lower", 4, 1,
           "Energy distance to the tilted law whose mean reward is that of the samples: of all laws of this reward, "
           "the one of smallest KL divergence from the data's."),
    Column("class_energy_distance", "energy to class", "energy, real images", _TILTED, "lower", 4, 1,
           "Energy distance to the images of the wanted class among those that the base was pretrained on. The row of "
           "real data has held-out ones."),
    *(column for column in COLUMNS if column.key == "seconds_per_1000_steps"),
)
# fmt: on
