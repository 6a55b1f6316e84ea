"""Read records from files, saved data sets, the hub and chats, and store large data sets outside memory."""

from __future__ import annotations

from dpzo.data.chats import ASSISTANT, MESSAGES, own_chat
from dpzo.data.hub import parse_hub
from dpzo.data.in_memory import InMemory
from dpzo.data.options import refuse_unused
from dpzo.data.reading import kind_by_columns, read_records
from dpzo.data.sources import open_table

__all__ = [
    "ASSISTANT",
    "MESSAGES",
    "InMemory",
    "kind_by_columns",
    "open_table",
    "own_chat",
    "parse_hub",
    "read_records",
    "refuse_unused",
]
