"""Fine-tune a causal model on private chats with LoRA, and generate an answer.

python examples/finetune_chat.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output run
"""

import argparse
from pathlib import Path

import dpzo

DATA = Path(__file__).parent / "data"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="a causal chat model: a folder or a Hugging Face name")
parser.add_argument("--data", default=DATA / "chats.jsonl", help="chats: one JSON object with messages per line")
parser.add_argument("--epsilon", type=float, default=8.0)
parser.add_argument("--steps", type=int, help="default: 200")
parser.add_argument("--max-length", type=int, default=128, help="tokens of a chat")
parser.add_argument("--output", default="run")
options = parser.parse_args()

run = dpzo.finetune(
    options.model,
    options.data,
    kind="chat",  # the loss covers the assistant's turns only
    trainable="lora",
    num_examples=60,
    unit_column="customer",
    max_length=options.max_length,
    epsilon=options.epsilon,
    delta=1e-3,
    steps=options.steps,
    output=options.output,
    tell=print,
)
print(run.card["claim"])
(answer,) = run.generate("Where is parcel 4711?", max_new_tokens=24)
print(f"answer: {answer}")
