"""The settings of a run, the learning rate that they mean, and named settings such as the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from msfilm.data.split import UNITS
from msfilm.errors import SettingError, suggest
from msfilm.model.encode import parse_conditioning
from msfilm.model.unet import UNetConfig
from msfilm.train.augment import PAPER_2020, AugmentConfig
from msfilm.train.loss import LOSSES

__all__ = ["CONFIGS", "PRECISIONS", "SCHEDULES", "TrainConfig", "learning_rate", "named_config", "with_settings"]

SCHEDULES = ("constant", "cosine", "cyclic", "plateau")
PRECISIONS = ("auto", "fp32", "bf16")
CYCLE_LOW = 0.1   # of lr: the cyclic schedule's lowest rate
_LATER = {"split_unit": "patient", "without_centres": ()}   # settings that earlier runs did not have: what they meant


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run; vary one with dataclasses.replace.

    Raises:
        SettingError: TRAIN-SETTING (and CONDITIONING-UNKNOWN, UNET-SETTING, AUGMENT-SETTING), naming the values that
            are allowed.
    """

    conditioning: str = "none"              # what z is made of: none (plain U-Net), contrast, acquisition, rater,
                                            # centre, or several joined as in contrast+rater
    contrasts: tuple[str, ...] = ()         # train on these only; (): all
    mask: str = "rater-1"                   # what is learnt: a mask of the slices; random-rater (of those who drew a
                                            # slice, one each time it is shown) or mean-rater (their mean, soft)
    depth: int = 3
    filters: int = 16
    dropout: float = 0.0                    # of whole channels; .1 made small networks worse, the paper's time used .3
    film: tuple[str, ...] | None = None     # places where FiLM is on; None: all 2 * depth + 2
    film_width: int = 64                    # hidden units of the FiLM generator
    film_form: str = "residual"             # 1 + dgamma; or sigmoid: gamma and beta in 0 to 1, as in earlier code
    film_place: str = "after-relu"          # or before-relu: where in a block
    modulation: str = "film"                # or concat: z as constant input channels
    prior: float = 0.01                     # probability of lesion that the network starts from; at .5, as usual, it
                                            # first unlearns half of all pixels, which takes epochs or ends at nothing
    film_lr: float = 0.1                    # the FiLM generator's share of the learning rate: with all of it, Dice
                                            # alone ended at empty masks in some trainings
    film_weight_decay: float = 0.0          # L2 on the FiLM generator alone; its zero is the identity
    epochs: int = 60
    batch_size: int = 16
    lr: float = 1e-3
    schedule: str = "cosine"                # constant; cosine to 0; cyclic (a tenth of lr to lr and back); plateau
                                            # (halved when validation stands still)
    cycle_epochs: float = 6.0               # of the cyclic schedule: up and down once
    patience: int = 15                      # epochs without a better validation Dice before stopping; 0: never stop
    loss: str = "dice"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    frozen_augmentation: bool = False       # every slice augmented once and kept so, as earlier code did with FiLM on
    precision: str = "auto"                 # bf16 where the processor has it; fp32 on a CPU is reproducible bit for bit
    device: str = "auto"
    seed: int = 0                           # weights, order, augmentation, dropout
    split_seed: int | str = 0               # which patients are trained on, chosen by, tested on; 'seed': the seed's
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    split_unit: str = "patient"             # or slice, which leaks: a patient is on all sides. To show that, only
    without_centres: tuple[str, ...] = ()   # their patients are neither trained on nor chosen by

    def __post_init__(self):
        for name in ("contrasts", "without_centres"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        if self.split_seed == "seed":
            object.__setattr__(self, "split_seed", self.seed)
        for name, kind in (("contrasts", str), ("film", str), ("fractions", (int, float)), ("without_centres", str)):
            value = getattr(self, name)
            if value is None and name == "film":
                continue
            if not isinstance(value, (list, tuple)) or any(isinstance(x, bool) or not isinstance(x, kind)
                                                           for x in value):
                raise SettingError("TRAIN-SETTING", f"{name}={value!r}",
                                   mend="use a list of " + ("names, as [T2w, T2star]" if name == "contrasts" else
                                                            "names" if kind is str else "numbers, as [0.6,0.2,0.2]"))
            object.__setattr__(self, name, tuple(value))
        parse_conditioning(self.conditioning)
        for name, allowed in (("schedule", SCHEDULES), ("loss", tuple(LOSSES)), ("precision", PRECISIONS),
                              ("split_unit", UNITS)):
            if getattr(self, name) not in allowed:
                raise SettingError("TRAIN-SETTING", f"{name}={getattr(self, name)!r}",
                                   mend=suggest(getattr(self, name), allowed))
        for name, low in (("epochs", 1), ("batch_size", 2), ("patience", 0), ("seed", 0), ("split_seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingError("TRAIN-SETTING", f"{name}={value!r}", mend=f"use a whole number, {low} or more")
        for name, low in (("lr", 1e-8), ("film_lr", 0.0), ("film_weight_decay", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= 1:
                raise SettingError("TRAIN-SETTING", f"{name}={value!r}", mend=f"use a number from {low:g} to 1")
        if not isinstance(self.cycle_epochs, (int, float)) or not 0.1 <= self.cycle_epochs <= 1e6:
            raise SettingError("TRAIN-SETTING", f"cycle_epochs={self.cycle_epochs!r}", mend="use a number, 0.1 or more")
        if not isinstance(self.device, str):
            raise SettingError("TRAIN-SETTING", f"device={self.device!r}", mend="use auto, cpu, cuda, cuda:1 ..")
        if not isinstance(self.frozen_augmentation, bool):
            raise SettingError("TRAIN-SETTING", f"frozen_augmentation={self.frozen_augmentation!r}",
                               mend="use true or false")
        if not isinstance(self.augment, AugmentConfig):
            raise SettingError("TRAIN-SETTING", f"augment={self.augment!r}", mend="use an AugmentConfig")
        self.unet(n_codes=2)   # checks depth, filters, dropout, film and film_width

    def unet(self, n_codes: int) -> UNetConfig:
        """The network's own settings."""
        return UNetConfig(depth=self.depth, filters=self.filters, dropout=self.dropout, n_codes=n_codes,
                          film=self.film, film_width=self.film_width, film_form=self.film_form,
                          film_place=self.film_place, modulation=self.modulation, prior=self.prior)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, without newer ones that are off: so a run keeps the name and content that it had."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TrainConfig:
        """From JSON or a notebook's parameters; a misspelt name is refused with the right one."""
        content = dict(content)
        if isinstance(content.get("augment"), dict):
            content["augment"] = _checked(AugmentConfig, content["augment"])
        return _checked(cls, content)


def _checked(cls: type, content: dict[str, Any]) -> Any:
    known = [f.name for f in fields(cls)]
    for name in content:
        if name not in known:
            raise SettingError("TRAIN-SETTING", f"there is no setting '{name}'", mend=suggest(name, known))
    return cls(**content)


def learning_rate(config: TrainConfig, history: list[dict[str, float]], epochs_done: float) -> float:
    """The rate at a moment of the run (epochs_done 2.5: half-way through the third epoch)."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * epochs_done / config.epochs))
    if config.schedule == "cyclic":
        phase = epochs_done / config.cycle_epochs % 1.0
        return config.lr * (CYCLE_LOW + (1 - CYCLE_LOW) * (1 - abs(2 * phase - 1)))   # a triangle
    if config.schedule == "plateau":
        wait, best, since, drops = max(1, (config.patience or 15) // 3), -1.0, 0, 0
        for row in history:   # halved whenever `wait` epochs brought nothing better
            best, since = (row["val_dice"], 0) if row["val_dice"] > best else (best, since + 1)
            if since == wait:
                drops, since = drops + 1, 0
        return config.lr * 0.5**drops
    return config.lr


# The settings of the paper's time, as far as they are known: an experiment's configuration of early 2020, not certainly
# that of the final run. Its cyclic rate went up and down within 4000 steps, about 6 epochs of the paper's training set.
CONFIGS: dict[str, TrainConfig] = {
    "paper2020": TrainConfig(
        conditioning="contrast", depth=2, filters=64, dropout=0.3, film_form="sigmoid", epochs=100, batch_size=32,
        lr=1e-3, schedule="cyclic", cycle_epochs=6.0, patience=50, loss="dice", prior=0.5, film_lr=1.0,
        augment=PAPER_2020),
}


def named_config(name: str) -> TrainConfig:
    """Settings by name; vary them with dataclasses.replace.

    Raises:
        SettingError: CONFIG-UNKNOWN.
    """
    if name not in CONFIGS:
        raise SettingError("CONFIG-UNKNOWN", f"there are no settings called '{name}'", mend=suggest(name, CONFIGS))
    return CONFIGS[name]


def with_settings(config: TrainConfig, settings: Sequence[str]) -> TrainConfig:
    """Settings changed by words such as 'film_form=sigmoid' or 'augment.noise=0.05', as a command line gives them.

    Raises:
        SettingError: TRAIN-SETTING, for a word without '=', a name that does not exist or a value that is not allowed.
    """
    import yaml

    content = asdict(config)
    for word in settings:
        name, equals, text = word.partition("=")
        if not equals:
            raise SettingError("TRAIN-SETTING", f"'{word}' is no setting", mend="write NAME=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, str):   # YAML takes 1e-3 for text
            try:
                value = float(value)
            except ValueError:
                pass
        outer, dot, inner = name.strip().partition(".")
        if dot and outer == "augment":
            content["augment"][inner] = value
        else:
            content[name.strip()] = value
    return TrainConfig.from_dict(content)
