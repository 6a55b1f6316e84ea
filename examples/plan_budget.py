"""Plan a privacy budget: how much noise do different ε and numbers of steps need? Reads no data and no model.

python examples/plan_budget.py --num-examples 5000 --expected-batch-size 500
"""

import argparse

import dpzo

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--num-examples", type=int, default=5000, help="number of privacy units")
parser.add_argument("--expected-batch-size", type=int, default=500)
parser.add_argument("--delta", type=float, default=1e-5)
parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0])
parser.add_argument("--steps", type=int, nargs="+", default=[100, 400])
options = parser.parse_args()

print("noise ÷ expected batch: standard deviation of the noise on the mean slope, in clip norms")
print(f"{'ε':>6} {'steps':>6} {'noise multiplier':>17} {'noise ÷ expected batch':>23}")
for epsilon in options.epsilons:
    for steps in options.steps:
        plan = dpzo.solve_plan(
            num_examples=options.num_examples,
            expected_batch_size=options.expected_batch_size,
            steps=steps,
            delta=options.delta,
            epsilon=epsilon,
        )
        noise = plan.noise_multiplier
        print(f"{plan.epsilon:>6.3f} {steps:>6} {noise:>17.3f} {noise / options.expected_batch_size:>23.5f}")
