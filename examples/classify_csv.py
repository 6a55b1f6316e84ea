"""Train a private classifier on your own CSV file, and evaluate it on public records.

python examples/classify_csv.py --model sentence-transformers/all-MiniLM-L6-v2 --output run
"""

import argparse
from pathlib import Path

import dpzo

DATA = Path(__file__).parent / "data"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="an encoder: a folder or a Hugging Face name")
parser.add_argument("--data", default=DATA / "tickets.csv", help="private records: columns text, label, customer")
parser.add_argument("--public", default=DATA / "tickets_public.csv", help="public records with the same columns")
parser.add_argument("--epsilon", type=float, default=2.0)
parser.add_argument("--steps", type=int, help="default: 200")
parser.add_argument("--output", default="run")
options = parser.parse_args()

run = dpzo.finetune(
    options.model,
    options.data,
    labels=["refund", "delivery", "other"],
    unit_column="customer",  # all tickets of a customer are protected together
    num_examples=60,  # the number of customers: declared, never read from the file
    max_length=48,
    epsilon=options.epsilon,
    delta=1e-3,  # well below 1 / num_examples in a real run
    steps=options.steps,
    output=options.output,
    tell=print,
)
print(run.card["claim"])
score = run.evaluate(options.public, data_is="public")
print(f"{score['metric']} on public records: {score['value']:.3f}")
