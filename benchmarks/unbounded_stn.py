"""Why the localisation net is bounded: the failed configuration of the dissertation's chapter 3, run again.

DAC*'s network and optimiser (RMSprop, 1e-3) behind one spatial transformer whose localisation net is Jaderberg's, with
a linear last layer. The source reports ACC .22 to .42 in five runs: images shrink, vanish, or become noise. The same
network behind ST-DAC's bounded localisation net is run beside it, at the same learning rate and at ST-DAC's 1e-4.

    python benchmarks/unbounded_stn.py --limit 10000 --epochs 5
"""

from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdac.data import Dataset, load
from stdac.machine import Machine
from stdac.methods import resolve
from stdac.methods.dac_star import fit_model
from stdac.methods.pairwise import Deployed
from stdac.networks import AllConvNet, BatchNorm
from stdac.run import Scorer, seed_everything
from stdac.stn import SpatialTransformer
from stdac.train import Trainer


class UnboundedLocalisation(nn.Module):
    """Convolutions 3x3 with 20 channels, BN and ReLU, two before and two after a pool, dense 32 ReLU, dense 6 linear.

    (B, C, H, W) float32 -> theta (B, 6), the identity at the start and without any bound.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 20, 3, padding=1) for c in (channels, 20, 20, 20))
        self.norms = nn.ModuleList(BatchNorm(20) for _ in self.convs)
        self.dense = nn.Linear(20 * (height // 2) * (width // 2), 32)
        self.theta = nn.Linear(32, 6)
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i == 1:
                x = F.max_pool2d(x, 2)
        theta: Tensor = self.theta(F.relu(self.dense(x.flatten(1))))
        return theta


class Straightened(nn.Module):
    """A spatial transformer before DAC*'s network."""

    def __init__(self, shape: tuple[int, int, int], bounded: bool) -> None:
        super().__init__()
        self.stn = SpatialTransformer(*shape)
        if not bounded:
            self.stn.localisation = UnboundedLocalisation(*shape)  # type: ignore[assignment]
        self.net = AllConvNet(10, shape)

    def forward(self, x: Tensor, group: int | None = None) -> Tensor:
        y: Tensor = self.net(self.stn(x), group)
        return y


def trial(dataset: Dataset, epochs: int, seed: int, *, bounded: bool, lr: float) -> dict[str, Any]:
    """Train one; its ACC by epoch, and the first transformer's scale and how much of the image variance it leaves."""
    description = resolve(
        {"dataset": "mnist", "method": "dac-star", "seed": seed, "epochs": epochs, "params": {"lr": lr}}
    )
    scorer = Scorer(description, dataset, "cpu")
    images = torch.from_numpy(dataset.images)
    with torch.random.fork_rng():
        seed_everything(seed)
        net = Straightened((1, 28, 28), bounded)
        fit_model(Deployed(net), images, description.params, Trainer(seed, epochs, scorer))  # type: ignore[arg-type]
    with torch.no_grad():
        sample = images[:500].float() / 255
        shown = net.eval().stn(sample - sample.mean())
    accuracies = [row["acc"] for row in scorer.rows if row["main"]]
    return {"acc": accuracies, "variance_left": float(shown.var(0).mean() / sample.var(0).mean())}


@click.command()
@click.option("--limit", default=10_000)
@click.option("--epochs", default=5)
@click.option("--seeds", default=1)
@click.option("--threads", default=1)
@click.option("--data-dir", type=click.Path(path_type=Path))
def main(limit: int, epochs: int, seeds: int, threads: int, data_dir: Path | None) -> None:
    """Print ACC by epoch of the unbounded and the bounded transformer."""
    Machine(threads=threads).prepare()
    dataset = load("mnist", data_dir=data_dir, limit=limit)
    for bounded, lr in ((False, 1e-3), (True, 1e-3), (True, 1e-4)):
        for seed in range(seeds):
            found = trial(dataset, epochs, seed, bounded=bounded, lr=lr)
            name = f"{'bounded' if bounded else 'unbounded'}, lr {lr:g}, seed {seed}"
            curve = " ".join(f"{accuracy:.3f}" for accuracy in found["acc"])
            click.echo(f"{name:<28} ACC {curve}  variance left {found['variance_left']:.3f}")


if __name__ == "__main__":
    main()
