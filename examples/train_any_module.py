"""Train any PyTorch module with a loss of your own. The loss need not be differentiable.

python examples/train_any_module.py --output run
"""

import argparse

import torch

import dpzo


class Ratings(torch.nn.Module):
    """A small network that predicts a rating from six answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def forward(self, answers: torch.Tensor) -> torch.Tensor:
        """(B, 6) → (B,)."""
        return self.layers(answers)[:, 0]


def absolute_error(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One loss per row. Row i may depend only on the weights and on row i."""
    return (model(batch["answers"]) - batch["rating"]).abs()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epsilon", type=float, default=4.0)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--output", default="run")
options = parser.parse_args()

torch.manual_seed(0)
answers = torch.randn(1000, 6)
records = {"answers": answers, "rating": answers @ torch.tensor([1.0, -0.5, 0.3, 0.0, 0.2, -1.0])}
model = Ratings()
public = {name: values[:100] for name, values in records.items()}  # stands for public records in this example
before = absolute_error(model, public).mean().item()

plan = dpzo.solve_plan(
    num_examples=1000,
    expected_batch_size=250,
    steps=options.steps,
    num_directions=16,
    epsilon=options.epsilon,
    delta=1e-5,
)
# dpzo refuses a micro-batch in which rows influence each other's bits; another microbatch_size then helps.
settings = dpzo.Settings(learning_rate=0.2, smoothing=0.01, microbatch_size=64)
card = dpzo.fit(model, absolute_error, records, plan=plan, settings=settings, output=options.output)
print(card["claim"])
print(f"mean absolute error: {before:.3f} before, {absolute_error(model, public).mean().item():.3f} after")
